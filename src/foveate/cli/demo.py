"""`foveate demo`: the bundled model looks at drawn pictures, with all tokens and with fewer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from ..demo import evaluate, language
from ..demo.bundled import load
from ..demo.draw import draw
from ..demo.world import sample
from ..methods import parse
from . import rows
from .generate import encode
from .output import console, errors, print_json

app = typer.Typer(help="The bundled model at work; `train` is its recipe, `evaluate` its report.", invoke_without_command=True)
METHODS = (
    "fastv:layer=2,keep=0.5",
    "fastv:layer=2,keep=0.25",
    "vtw:layer=4",
    "random:layer=2,keep=0.5",
    "downsample:layer=0,keep=0.5",
)


@app.callback()
def demo(
    context: typer.Context,
    pictures: Annotated[int, typer.Option(min=1, max=100, help="Pictures to look at.")] = 3,
    held_out: Annotated[int, typer.Option(min=0, help="Further held-out pictures to score every method on.")] = 24,
    method: Annotated[list[str] | None, typer.Option(help="Instead of the default methods; may be repeated.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("demo-pictures"),
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each method on each picture.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else.")] = False,
) -> None:
    """Describe held-out pictures with all tokens, with FastV, VTW, and the random and downsampling controls."""
    if context.invoked_subcommand is not None:
        return
    specs = list(dict.fromkeys(method or METHODS))
    table = [rows.Row("unpruned", None), *(rows.Row(spec, parse(spec)) for spec in specs)]
    model, processor = load("scenes")
    scenes = [sample("test", index) for index in range(pictures)]
    out.mkdir(parents=True, exist_ok=True)
    prompts = []
    for index, scene in enumerate(scenes):
        image = draw(scene).image
        image.save(out / f"test-{index}.png")
        prompts.append(dict(encode(processor, [image], language.DESCRIPTION_PROMPTS[0])))
    asked = [q for q in evaluate.questions("test", held_out, start=pictures) if q.kind != "caption"]
    with Progress(console=errors, transient=True) as progress:
        task = progress.add_task("describing pictures", total=(repeats + 1) * len(table) * pictures)
        rows.run(model, processor, prompts, table, 64, repeats, lambda: progress.advance(task))
        task = progress.add_task("answering questions", total=len(asked) * len(table))
        reports = []
        for row in table if asked else []:
            found = evaluate.answer(
                model, processor, asked, row.methods or [], progress=lambda n: progress.advance(task, n)
            )
            reports.append(evaluate.judge(row.spec, asked, found))
    truths = [language.describe(scene) for scene in scenes]
    if as_json:
        scored = {r.method: {"figures": r.figures, "intervals": r.intervals} for r in reports}
        print_json({"pictures": truths, "rows": [rows.as_dict(r, table[0]) for r in table], "held_out": scored})
        return
    _print(table, truths, reports, out)


def _print(table: list[rows.Row], truths: list[str], reports: list[evaluate.Report], out: Path) -> None:
    for index, truth in enumerate(truths):
        console.rule(f"{out / f'test-{index}.png'}")
        console.print(f"[dim]drawn:[/dim] {truth}", highlight=False)
        there = set(language.parse_description(truth))
        for row in table:
            said = row.answers[index]
            marked = ", ".join(
                part if language.parse_description(part)[0] in there else f"[red]{part}[/red]"
                for part in said.rstrip(".").split(", ")
            )
            missed = len(there - set(language.parse_description(said)))
            note = f" [red]({missed} missed)[/red]" if missed else ""
            console.print(f"[bold]{row.spec}[/bold]: {marked}{note}", highlight=False)
    console.rule(f"cost of these {len(truths)} descriptions (time: median of runs in turn, on this machine)")
    console.print(rows.table(table))
    if reports:
        console.rule(f"quality on {reports[0].pictures} more held-out pictures")
        console.print(quality_table(reports))


def quality_table(reports: list[evaluate.Report]) -> rows.Table:
    """Figures of every method with their 95 % intervals."""
    keys = list(dict.fromkeys(key for report in reports for key in report.figures))
    out = rows.Table()
    out.add_column("method")
    for key in keys:
        out.add_column(key, justify="right")
    for report in reports:
        cells = []
        for key in keys:
            low, high = report.intervals[key]
            unit = 1 if key == "CIDEr" else 100
            cells.append(f"{report.figures[key] * unit:.1f}\n[dim]{low * unit:.0f}-{high * unit:.0f}[/dim]")
        out.add_row(report.method, *cells)
    return out
