"""`foveate demo`: the bundled model looks at drawn pictures, with all tokens and with fewer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Group
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from ..eval.answers import evaluate
from ..eval.report import figures
from ..eval.tasks import TITLES, Sample, bundled
from ..models.load import load, ships
from ..models.loaded import Loaded
from ..models.smol.base import at_hand, how_to_install
from ..timing import comparison
from ..world import language
from ..world.draw import draw
from ..world.scenes import sample
from . import options, tables
from .output import console, errors, print_json

RECOMMENDED = "divprune:keep=0.25,weigh=nearest,merge=mean"  # a quarter, which speaks for the rest
METHODS = (
    RECOMMENDED,
    "divprune:keep=0.25",
    "fastv:layer=2,keep=0.5",
    "random:layer=2,keep=0.5",
    "downsample:layer=2,keep=0.5",
)
HELD_OUT = {"scenes": 24, "smol": 4}  # some three minutes on two CPU cores
Figures = dict[str, dict[str, dict[str, Any]]]  # by method and name, as `report.figures` gives them

_BATCH = 32  # samples that run together
_BESIDE = 4  # methods that fit beside the first in a table

Which = Annotated[
    str, typer.Option(help="scenes, smol, or auto: smol if its language model is installed.")
]


def demo(
    pictures: Annotated[int, typer.Option(min=1, max=100, help="Pictures to look at.")] = 3,
    held_out: Annotated[
        int | None,
        typer.Option(
            min=0, help="More held-out pictures, to score every method on. [24; of smol 4]"
        ),
    ] = None,
    method: options.Methods = None,
    model: Which = "auto",
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("demo-pictures"),
    repeats: options.Repeats = 3,
    as_json: options.Json = False,
) -> None:
    """Describe held-out pictures with all tokens, with FastV, VTW, and the random and downsampling controls."""
    model = chosen(model)
    table = comparison.rows_of(method or METHODS)
    loaded = load(model)
    scenes = [sample("test", index) for index in range(pictures)]
    out.mkdir(parents=True, exist_ok=True)
    prompts = []
    for index, scene in enumerate(scenes):
        image = draw(scene).image
        image.save(out / f"test-{index}.png")
        prompts.append(loaded.inputs([image], language.DESCRIPTION_PROMPTS[0]))
    with Progress(console=errors, transient=True) as progress:
        task = progress.add_task("describing pictures", total=(repeats + 1) * len(table) * pictures)
        comparison.run(loaded, prompts, table, 64, repeats, lambda: progress.advance(task))
    more = HELD_OUT[model] if held_out is None else held_out
    samples = bundled(["descriptions", "questions"], first=pictures, pictures=more) if more else []
    found = judged(loaded, table, samples) if samples else {}
    truths = [language.describe(scene) for scene in scenes]
    if as_json:
        done = [comparison.as_dict(row, table[0]) for row in table]
        print_json({"model": model, "pictures": truths, "rows": done, "held_out": found})
        return
    console.print(_about(model), highlight=False)
    _show({str(out / f"test-{index}.png"): truth for index, truth in enumerate(truths)}, table)
    if found:
        console.rule(f"quality on {more} more held-out pictures, in % with 95 % intervals")
        console.print(quality_tables(found))


def _show(truths: dict[str, str], table: list[comparison.Contestant]) -> None:
    """Answers picture by picture (path -> what was drawn), and their cost."""
    for index, (path, truth) in enumerate(truths.items()):
        _print_answers(path, truth, [(row.spec, row.answers[index]) for row in table])
    console.rule(f"what these {len(truths)} descriptions cost")
    console.print(tables.compared(table))


def chosen(model: str) -> str:
    """The bundled model of that name; of "auto", smol if it can be had here without a network, else scenes.

    Raises:
        ValueError: there is no bundled model of that name.
    """
    if model not in ("auto", *HELD_OUT):
        raise ValueError(
            f"--model {model!r}; expected auto, {' or '.join(HELD_OUT)} (others: `foveate generate`)"
        )
    if model != "auto":
        return model
    return "smol" if ships("smol") and at_hand() else "scenes"


def _about(model: str) -> str:
    """Which model this is, and what would bring the other."""
    if model == "smol":
        return (
            "model: [bold]smol[/bold] (SmolLM2-135M-Instruct inside; --model scenes: our small one)"
        )
    if not ships("smol"):
        return "model: [bold]scenes[/bold]"
    return f"model: [bold]scenes[/bold] (for smol, with a real language model inside: {escape(how_to_install())})"


def judged(loaded: Loaded, table: list[comparison.Contestant], samples: list[Sample]) -> Figures:
    """Figures of the samples' answers under every method, from `report.figures`, with a progress bar."""
    runs = {}
    with Progress(console=errors, transient=True) as progress:
        task = progress.add_task("answering questions", total=len(samples) * len(table))
        for row in table:
            runs[row.spec] = evaluate(
                loaded,
                samples,
                row.spec,
                row.methods or [],
                _BATCH,
                progress=lambda n: progress.advance(task, n),
            )
    return figures(samples, runs, "words")


def _print_answers(picture: str, truth: str, answers: list[tuple[str, str]]) -> None:
    """Each method's description, wrong objects in red, and how many were missed."""
    console.rule(picture)
    console.print(f"[dim]drawn:[/dim] {truth}", highlight=False)
    there = set(language.parse_description(truth))
    for spec, said in answers:
        parts = said.rstrip(".").split(", ")
        marked = [
            escape(p) if language.parse_description(p)[0] in there else f"[red]{escape(p)}[/red]"
            for p in parts
        ]
        missed = len(there - set(language.parse_description(said)))
        note = f" [red]({missed} missed)[/red]" if missed else ""
        console.print(f"[bold]{spec}[/bold]: {', '.join(marked)}{note}", highlight=False)


def quality_tables(found: Figures) -> Group:
    """Figures (down) of every method (across) with their 95 % intervals, few methods a table, all beside the first."""
    first, *others = found
    tables = max(1, math.ceil(len(others) / _BESIDE))
    parts = [
        others[len(others) * t // tables : len(others) * (t + 1) // tables] for t in range(tables)
    ]
    return Group(
        *(_quality_table({spec: found[spec] for spec in [first, *part]}) for part in parts)
    )


def _quality_table(found: Figures) -> Table:
    """Figures of a few methods."""
    out = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    out.add_column("", no_wrap=True)
    for spec in found:
        out.add_column(spec.replace(":", ": ").replace(",", ", "), justify="right", overflow="fold")
    for key, title in TITLES.items():
        of_each = [of_method[key] for of_method in found.values() if key in of_method]
        if of_each:
            out.add_row(
                title,
                *(f"{f['value']:.1f} [dim]{f['low']:.0f}-{f['high']:.0f}[/dim]" for f in of_each),
            )
    return out
