"""`foveate methods`: what there is, from the code itself."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich.markup import escape

from ..core.method import Method
from ..cost import plan
from ..cost.architecture import architecture
from ..cost.configurations import config_of
from ..cost.flops import UnforeseenError
from ..methods import factories, knobs
from ..methods.spec import SPEAKING
from . import options
from .output import console, print_json
from .sheet import Sheet

CONTROLS = "controls: every ranking must beat them"
GROUPS = (
    "before the language model",
    "inside the language model",
    "while the answer grows",
    CONTROLS,
)
_EXAMPLE = "llava-1.5-7b"  # the shape whose cost `foveate methods NAME` states


def describe(name: str) -> dict[str, Any]:
    """What a method is, read off its module's first line and its factory's docstring and signature.

    Returns:
        "name", "idea" (eight words at most), "group" (one of `GROUPS`), "where", "arxiv" (a number,
        or "" for controls), "summary", "paper", "deviations" and "knobs".
    """
    factory = factories()[name]
    doc = (inspect.getdoc(factory) or "").replace("``", "")
    module = inspect.getdoc(inspect.getmodule(factory)) or ""
    parts = [" ".join(p.split()) for p in doc.split("\n\n")]

    def part(key: str) -> str:
        return next(
            (p.removeprefix(f"{key}:").strip() for p in parts if p.startswith(f"{key}:")), ""
        )

    meanings = _meanings(part("Args"), knobs(name))
    listed = {
        k: {
            "default": "(needed)" if default is inspect.Parameter.empty else default,
            "meaning": meanings[k],
        }
        for k, (_, default) in knobs(name).items()
    }
    paper = part("Paper")
    number = None if paper.startswith("none") else re.search(r"\d{4}\.\d{5}", paper)
    group, _, where = part("Where").rstrip(".").partition("; ")
    return {
        "name": name,
        "idea": module.partition("\n\n")[0].partition(": ")[2].rstrip("."),
        "group": group if number else CONTROLS,
        "where": where,
        "arxiv": number.group() if number else "",
        "summary": parts[0],
        "paper": paper,
        "deviations": part("Deviations"),
        "knobs": listed,
    }


def of_every_method() -> dict[str, str]:
    """What the knobs mean that every method takes, read off `Method.weighted`."""
    doc = " ".join((inspect.getdoc(Method.weighted) or "").split())
    args = doc.partition("Args: ")[2].partition(" Raises: ")[0]
    return _meanings(args, SPEAKING)


def _meanings(args: str, names: Iterable[str]) -> dict[str, str]:
    """What the "Args" of a docstring, on one line, say of each name; "" of what they leave out."""
    start = rf"(?:^|\s)({'|'.join(names)}): "
    pieces = re.split(start, args)[1:]  # a name, what is said of it, the next name...
    said = dict(zip(pieces[::2], pieces[1::2], strict=True))
    return {name: said.get(name, "").strip() for name in names}


def list_methods(
    name: Annotated[
        str | None,
        typer.Argument(help="Show all about this method: knobs, deviations, cost, paper."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the methods, one line each; with a NAME, all about that one."""
    if name is None:
        found = [describe(one) for one in factories()]
        print_json(found) if as_json else _print_all(found)
        return
    if name not in factories():
        close = difflib.get_close_matches(name, factories(), 1)
        meant = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"unknown method {name!r}{meant}; there are {', '.join(factories())}")
    one = {**describe(name), "cost": example_cost(name)}
    print_json(one) if as_json else _print_one(one)


def example_cost(name: str) -> str:
    """In words, what a method saves by its defaults on LLaVA-1.5-7B's shape; or why that is not known."""
    if any(default is inspect.Parameter.empty for _, default in knobs(name).values()):
        return (
            "It depends on a knob that has no default. `foveate cost` computes it for your setting."
        )
    method = factories()[name]()
    reads = " It also recomputes attention in the vision tower." if method.needs.tower else ""
    config = config_of(_EXAMPLE)
    sizes = architecture(config)
    request = plan.request(config, text=64, images=1, new_tokens=128)
    try:
        ratio = plan.cost_of(sizes, request, [method]).ratio(plan.cost_of(sizes, request))
    except UnforeseenError:
        return f"It depends on the picture; the trace of a run shows it.{reads}"
    return (
        f"By its defaults, on {_EXAMPLE} with one picture ({request.visual} tokens), {request.text} text tokens and "
        f"{request.new_tokens} new ones: {ratio['prefill']:.2f}x the prefill FLOPs and {ratio['kv_bytes']:.2f}x the "
        f"KV cache of the unpruned model. Ranking is not counted.{reads}"
    )


def _print_all(found: list[dict[str, Any]]) -> None:
    table = Sheet("method", ("idea", "acts at", "arXiv"), words=("idea", "acts at"))
    for group in GROUPS:
        table.group(group)
        for one in (one for one in found if one["group"] == group):
            table.add(one["name"], one["idea"], one["where"], one["arxiv"] or "none")
    console.print(table)
    console.print(
        "\n`foveate methods NAME` shows a method's knobs, deviations, cost and paper. Join methods by +, as in "
        "vscan1+vscan2. Every method also takes the knobs "
        f"{', '.join(of_every_method())}, by which kept tokens speak for the dropped.",
        highlight=False,
    )


def _print_one(one: dict[str, Any]) -> None:
    console.print(f"[bold]{one['name']}[/bold]: {escape(one['summary'])}", highlight=False)
    console.print(f"\nIt acts {escape(one['group'])}: {escape(one['where'])}.", highlight=False)
    table = Sheet("knob", ("default", "meaning"), words=("meaning",), title="\nknobs")
    for knob, told in one["knobs"].items():
        table.add(knob, escape(str(told["default"])), escape(told["meaning"]))
    console.print(table)
    every = {knob: said for knob, said in of_every_method().items() if knob not in one["knobs"]}
    if every:
        title = "\nknobs of every method: for whom kept tokens speak"
        shared = Sheet("knob", ("meaning",), words=("meaning",), title=title)
        for knob, meaning in every.items():
            shared.add(knob, escape(meaning))
        console.print(shared)
    for part in ("deviations", "cost", "paper"):
        console.print(f"\n[bold]{part}[/bold]: {escape(one[part])}", highlight=False)
