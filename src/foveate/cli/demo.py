"""`foveate demo`: the bundled model looks at drawn pictures, with all tokens and with fewer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Group
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from ..demo import evaluate
from ..models.load import load, ships
from ..models.loaded import Loaded
from ..models.smol.base import at_hand, how_to_install
from ..timing import comparison
from ..world import language
from ..world.draw import draw
from ..world.scenes import sample
from . import options, tables
from .output import console, errors, print_json

app = typer.Typer(help="The bundled model at work; see also its `train` and `evaluate`.", invoke_without_command=True)
METHODS = {
    name: (
        "fastv:layer=2,keep=0.5",
        "fastv:layer=2,keep=0.25",
        f"vtw:layer={withdrawn}",
        "random:layer=2,keep=0.5",
        "downsample:layer=2,keep=0.5",
    )
    for name, withdrawn in (("scenes", 4), ("smol", 15))  # half of each decoder
}
HELD_OUT = {"scenes": 24, "smol": 4}  # some three minutes on two CPU cores
_BESIDE = 4  # methods that fit beside the first in a table


Which = Annotated[str, typer.Option(help="scenes, smol, or auto: smol if its language model is installed.")]


@app.callback()
def demo(
    context: typer.Context,
    pictures: Annotated[int, typer.Option(min=1, max=100, help="Pictures to look at.")] = 3,
    held_out: Annotated[
        int | None, typer.Option(min=0, help="More held-out pictures, to score every method on. [24; of smol 4]")
    ] = None,
    method: options.Methods = None,
    model: Which = "auto",
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("demo-pictures"),
    repeats: options.Repeats = 3,
    as_json: options.Json = False,
) -> None:
    """Describe held-out pictures with all tokens, with FastV, VTW, and the random and downsampling controls."""
    if context.invoked_subcommand is not None:
        return _refuse_misplaced(context)
    model = chosen(model)
    table = comparison.rows_of(method or METHODS[model])
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
    asked = [q for q in evaluate.questions("test", more, start=pictures) if q.kind != "caption"]
    reports = score(loaded, table, asked) if asked else []
    truths = [language.describe(scene) for scene in scenes]
    if as_json:
        scored = {r.method: {"figures": r.figures, "intervals": r.intervals} for r in reports}
        done = [comparison.as_dict(row, table[0]) for row in table]
        print_json({"model": model, "pictures": truths, "rows": done, "held_out": scored})
        return
    console.print(_about(model), highlight=False)
    _show({str(out / f"test-{index}.png"): truth for index, truth in enumerate(truths)}, table, reports)


def _show(truths: dict[str, str], table: list[comparison.Row], reports: list[evaluate.Report]) -> None:
    """Answers picture by picture (path -> what was drawn), their cost, and the held-out quality."""
    for index, (path, truth) in enumerate(truths.items()):
        _print_answers(path, truth, [(row.spec, row.answers[index]) for row in table])
    console.rule(f"what these {len(truths)} descriptions cost")
    console.print(tables.compared(table))
    if reports:
        console.rule(f"quality on {reports[0].pictures} more held-out pictures, in % with 95 % intervals")
        console.print(quality_tables(reports))


def chosen(model: str) -> str:
    """The bundled model of that name; of "auto", smol if it can be had here without a network, else scenes.

    Raises:
        ValueError: there is no bundled model of that name.
    """
    if model not in ("auto", *METHODS):
        raise ValueError(f"--model {model!r}; expected auto, {' or '.join(METHODS)} (others: `foveate generate`)")
    if model != "auto":
        return model
    return "smol" if ships("smol") and at_hand() else "scenes"


def _about(model: str) -> str:
    """Which model this is, and what would bring the other."""
    if model == "smol":
        return "model: [bold]smol[/bold] (SmolLM2-135M-Instruct inside; --model scenes: our small one)"
    if not ships("smol"):
        return "model: [bold]scenes[/bold]"
    return f"model: [bold]scenes[/bold] (for smol, with a real language model inside: {escape(how_to_install())})"


def _refuse_misplaced(context: typer.Context) -> None:
    """Raises ValueError if options of the demo came with a subcommand, which would not see them."""
    given = [n for n in context.params if getattr(context.get_parameter_source(n), "name", "") == "COMMANDLINE"]
    if given:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{named} came before {context.invoked_subcommand!r}; give its options after its name")


def score(loaded: Loaded, table: list[comparison.Row], asked: list[evaluate.Question]) -> list[evaluate.Report]:
    """The questions answered and judged under every method, with a progress bar."""
    reports = []
    with Progress(console=errors, transient=True) as progress:
        task = progress.add_task("answering questions", total=len(asked) * len(table))
        for row in table:
            found = evaluate.answer(loaded, asked, row.methods or [], progress=lambda n: progress.advance(task, n))
            reports.append(evaluate.judge(row.spec, asked, found))
    return reports


def _print_answers(picture: str, truth: str, answers: list[tuple[str, str]]) -> None:
    """Each method's description, wrong objects in red, and how many were missed."""
    console.rule(picture)
    console.print(f"[dim]drawn:[/dim] {truth}", highlight=False)
    there = set(language.parse_description(truth))
    for spec, said in answers:
        parts = said.rstrip(".").split(", ")
        marked = [escape(p) if language.parse_description(p)[0] in there else f"[red]{escape(p)}[/red]" for p in parts]
        missed = len(there - set(language.parse_description(said)))
        note = f" [red]({missed} missed)[/red]" if missed else ""
        console.print(f"[bold]{spec}[/bold]: {', '.join(marked)}{note}", highlight=False)


def quality_tables(reports: list[evaluate.Report]) -> Group:
    """Figures (down) of every method (across) with their 95 % intervals, few methods a table, all beside the first."""
    first, others = reports[:1], reports[1:]
    tables = max(1, math.ceil(len(others) / _BESIDE))
    parts = [others[len(others) * t // tables : len(others) * (t + 1) // tables] for t in range(tables)]
    return Group(*(_quality_table(first + part) for part in parts))


def _quality_table(reports: list[evaluate.Report]) -> Table:
    """Figures of a few methods."""
    out = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    out.add_column("", no_wrap=True)
    for report in reports:
        out.add_column(report.method.replace(":", ": ").replace(",", ", "), justify="right", overflow="fold")
    for key in dict.fromkeys(key for report in reports for key in report.figures):
        unit = 1 if key == "CIDEr" else 100
        cells = []
        for report in reports:
            low, high = report.intervals[key]
            cells.append(f"{report.figures[key] * unit:.1f} [dim]{low * unit:.0f}-{high * unit:.0f}[/dim]")
        out.add_row(key, *cells)
    return out
