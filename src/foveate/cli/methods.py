"""`foveate methods`: what there is, from the code itself."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich.table import Table

from ..core.method import Method
from ..methods import factories, knobs
from ..methods.spec import SPEAKING
from .output import console, print_json


def describe(name: str) -> dict[str, Any]:
    """A method's summary, paper, deviations and knobs, read off its factory's docstring and
    signature.
    """
    doc = inspect.getdoc(factories()[name]) or ""
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
    return {
        "name": name,
        "summary": parts[0],
        "paper": part("Paper"),
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the methods with their knobs, papers and deviations."""
    found = [describe(name) for name in factories()]
    if as_json:
        print_json(found)
        return
    table = Table(show_lines=True)
    for column in ("method", "what it does", "knobs (default)", "deviations from the paper"):
        table.add_column(column, overflow="fold")
    for m in found:
        lines = [f"{k} = {v['default']}" for k, v in m["knobs"].items()]
        table.add_row(
            m["name"], f"{m['summary']}\n[dim]{m['paper']}[/dim]", "\n".join(lines), m["deviations"]
        )
    console.print(table)
    console.print(
        "Every method also takes the knobs below, by which kept tokens speak for the dropped, as in "
        "divprune:keep=0.125,weigh=nearest,merge=mean. Without them nothing is weighed, and states are merged only as "
        "the method itself does.",
        highlight=False,
    )
    every = Table(show_header=False, box=None)
    for knob, meaning in of_every_method().items():
        every.add_row(knob, meaning)
    console.print(every)
