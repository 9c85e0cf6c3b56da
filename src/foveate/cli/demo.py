"""`foveate demo`: a bundled model looks at drawn pictures, with all tokens and with fewer."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress

from ..eval.answers import evaluate
from ..eval.report import figures
from ..eval.tasks import bundled
from ..eval.tasks.sample import Sample
from ..explore import html, record, report
from ..models.load import load, ships
from ..models.loaded import Loaded
from ..models.smol.base import at_hand, how_to_install
from ..timing import comparison
from ..timing.comparison import Contestant
from ..world import language
from ..world.draw import draw
from ..world.scenes import Scene, sample
from . import options
from .output import console, errors, flops, print_json, wrote
from .sheet import Sheet
from .tables import ABOVE

LABELS = {
    "scenes": {
        options.RECOMMENDED: "recommended",
        "schedule:scenes-gsearch-weighted": "G-Search",
        "dyrate:predictor=scenes-0.2-weighted": "DyRate",
        "fastv:layer=2,keep=0.25": "FastV",
        "random:layer=0,keep=0.25": "random",
    },
    "smol": {
        options.RECOMMENDED: "recommended",
        "schedule:smol-gsearch-weighted": "G-Search",
        "dyrate:predictor=smol-0.33": "DyRate",
        "fastv:layer=2,keep=0.25": "FastV",
        "random:layer=0,keep=0.25": "random",
    },
}
"""What is shown of each bundled model, and what it is called in the table."""

HELD_OUT = {"scenes": 24, "smol": 4}  # pictures; smol's answers take longer
QUALITY = {
    "descriptions object-recall": "found",
    "descriptions object-precision": "right",
    "questions exact": "answers",
}
SIZES = {"flops": "FLOPs", "kv_bytes": "KV"}
TIMES = {"first": "first token"}
Figures = dict[str, dict[str, dict[str, Any]]]  # by method and name, as `report.figures` gives them

_BATCH = 32  # samples that run together
_LONGEST = 64  # tokens of an answer
_LEGEND = (
    "Found: objects drawn that are named. Right: objects named that are drawn. Answers: questions "
    "answered right. All in % with 95 % intervals, over {held_out} held-out pictures. FLOPs, KV "
    "cache: of unpruned, computed. First token: times faster than unpruned / the most that any "
    "device could gain; warmed up, run in turn, {repeats} times."
)
_LEAD = (
    "A small vision-language model describes drawn pictures that it has not seen, with all visual tokens and with "
    "fewer. FastV and random selection keep as many as the recommended setting, and show that the choice matters."
)
_NEXT = (
    (
        "foveate explore IMAGE PROMPT --model MODEL --method METHOD",
        "the same page for your picture",
    ),
    ("foveate generate IMAGE PROMPT --model MODEL --method METHOD", "answer with your own model"),
    ("foveate advise MODEL", "what pruning can gain on it"),
    ("foveate methods", "all methods, a line each"),
)

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
    out: Annotated[
        Path, typer.Option(help="Folder for the pictures and the page, demo.html.")
    ] = Path("demo-pictures"),
    repeats: options.Repeats = 3,
    browse: Annotated[
        bool, typer.Option("--open", help="Open the page in the browser at the end.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Describe pictures with all visual tokens and with fewer: answers, figures, and a page to look at."""
    model = chosen(model)
    labels = {"unpruned": "unpruned", **LABELS[model]}
    table = comparison.rows_of(method or LABELS[model])
    more = HELD_OUT[model] if held_out is None else held_out
    loaded = load(model)
    scenes = {f"test-{index}.png": sample("test", index) for index in range(pictures)}
    out.mkdir(parents=True, exist_ok=True)
    for name, scene in scenes.items():
        draw(scene).image.save(out / name)
    samples = bundled(["descriptions", "questions"], first=pictures, pictures=more) if more else []
    with Progress(console=errors, transient=True) as progress:
        timed = progress.add_task("timing answers", total=(repeats + 1) * len(table) * pictures)
        inputs = [
            loaded.inputs([draw(s).image], language.DESCRIPTION_PROMPTS[0]) for s in scenes.values()
        ]
        comparison.run(loaded, inputs, table, _LONGEST, repeats, lambda: progress.advance(timed))
        watched = progress.add_task("watching tokens", total=len(table) * pictures)
        recorded = [
            recorded_scene(loaded, name, scene, table, lambda: progress.advance(watched))
            for name, scene in scenes.items()
        ]
        scored = progress.add_task("scoring answers", total=len(samples) * len(table))
        found = judged(loaded, table, samples, lambda n: progress.advance(scored, n))
    page = out / "demo.html"
    cells = {row.spec: row_cells(row, table[0], found.get(row.spec, {})) for row in table}
    legend = _LEGEND.format(held_out=more, repeats=repeats)
    if any("!" in text for row in cells.values() for text in row.values()):
        legend += " ! lies above the cap: the measurement is wrong there."
    html.write(_report(model, recorded, cells, legend), page)
    if as_json:
        done = [comparison.as_dict(row, table[0]) for row in table]
        truths = [language.describe(scene) for scene in scenes.values()]
        print_json(
            {"model": model, "pictures": truths, "rows": done, "held_out": found, "page": str(page)}
        )
        return
    console.print(_about(model), highlight=False)
    for index, (name, scene) in enumerate(scenes.items()):
        said = {labels.get(row.spec, row.spec): row.answers[index] for row in table}
        _print_answers(str(out / name), scene, said)
    console.rule("what it costs, and what is lost")
    console.print(_sheet(labels, cells, legend))
    for spec in (row.spec for row in table if row.spec in LABELS[model]):
        console.print(f"  [bold]{labels[spec]}[/bold] is {escape(spec)}", highlight=False)
    console.rule("next")
    for command, purpose in _NEXT:
        console.print(f"  {command}  [dim]{purpose}[/dim]", highlight=False)
    wrote(page, "the page of all that, to open in a browser")
    if browse:
        webbrowser.open(page.resolve().as_uri())


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


def recorded_scene(
    loaded: Loaded, name: str, scene: Scene, table: list[Contestant], tick: Any
) -> report.Sample:
    """What every method keeps of a scene, for the page."""
    return record.sample(
        loaded,
        [draw(scene).image],
        language.DESCRIPTION_PROMPTS[0],
        {row.spec: row.methods or [] for row in table},
        title=name,
        truth=language.describe(scene),
        max_new_tokens=_LONGEST,
        tick=tick,
    )


def judged(loaded: Loaded, table: list[Contestant], samples: list[Sample], tick: Any) -> Figures:
    """Figures of the samples' answers under every method, from `report.figures`; none of no samples."""
    if not samples:
        return {}
    runs = {
        row.spec: evaluate(loaded, samples, row.spec, row.methods or [], _BATCH, progress=tick)
        for row in table
    }
    return figures(samples, runs, "words")


def row_cells(row: Contestant, unpruned: Contestant, found: dict[str, Any]) -> dict[str, str]:
    """A row of the table by its columns: quality, sizes and times."""
    cells = {}
    for key, title in QUALITY.items():
        if key in found:
            f = found[key]
            low, high = (f"{f[end]:.0f}" for end in ("low", "high"))
            cells[title] = f"{f['value']:.0f}" + (
                f" {low}-{high}" if low != high and "nan" not in low else ""
            )
    ratio = row.cost.ratio(unpruned.cost)
    plain = {
        "flops": flops(row.cost.flops),
        "kv_bytes": f"{row.cost.kv_bytes / len(row.answers) / 1e6:.1f} MB",
    }
    for key, title in SIZES.items():
        cells[title] = plain[key] if row is unpruned else f"{ratio[key]:.2f}x"
    for part, title in TIMES.items():
        measured = row.ratio(part)
        seconds = getattr(row, part)
        cells[title] = (
            f"{1e3 * sum(seconds) / len(seconds):.1f} ms"
            if measured is None
            else f"{measured[0]:.1f}x/{measured[1]:.1f}x{'!' * (part in row.exceeded)}"
        )
    return cells


def _sheet(labels: dict[str, str], cells: dict[str, dict[str, str]], legend: str) -> Sheet:
    """The table for a terminal."""
    out = Sheet("method", tuple(next(iter(cells.values()))), caption=legend)
    for spec, row in cells.items():
        shown = [text.replace("!", ABOVE) for text in row.values()]
        out.add(labels.get(spec, spec), *shown)
    return out


def _report(
    model: str, recorded: list[report.Sample], cells: dict[str, dict[str, str]], legend: str
) -> report.Report:
    """The page."""
    rows = tuple((spec, *row.values()) for spec, row in cells.items())
    columns = ("method", *next(iter(cells.values())))
    return report.Report(
        "Foveate demo",
        tuple(recorded),
        model,
        _LEAD,
        report.Table("What it costs, and what is lost", columns, rows, legend),
        tuple(report.Hint(command, purpose) for command, purpose in _NEXT),
    )


def _print_answers(picture: str, scene: Scene, answers: dict[str, str]) -> None:
    """Each method's description, wrong objects in red, and how many were missed."""
    console.rule(picture)
    console.print(f"[dim]drawn:[/dim] {language.describe(scene)}", highlight=False)
    there = set(language.attributes(scene))
    for name, said in answers.items():
        parts = said.rstrip(".").split(", ")
        marked = [
            escape(p) if language.parse_description(p)[0] in there else f"[red]{escape(p)}[/red]"
            for p in parts
        ]
        missed = len(there - set(language.parse_description(said)))
        note = f" [red]({missed} missed)[/red]" if missed else ""
        console.print(f"[bold]{escape(name)}[/bold]: {', '.join(marked)}{note}", highlight=False)
