"""`foveate tune`: from a model and some pictures to a setting that is fast, and certified."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..artefacts.presets import presets
from ..eval.tasks import SPLITS, TASKS, bundled, prompts_in
from ..explore import tuned as page
from ..explore.report import Hint
from ..methods import parse
from ..models.load import load
from ..models.loaded import Loaded
from ..processes import launched
from ..tune.setting.choose import Outcome, Tuning
from ..tune.setting.data import Asked, apart
from ..tune.setting.losses import LOSSES
from ..tune.setting.wish import COSTS, Wish, percent
from . import options
from .output import console, errors, print_json, wrote
from .sheet import Sheet

_EXAMPLES = 10  # on the page
_TASKS = "descriptions,questions"


def tune(
    out: Annotated[
        Path,
        typer.Option(
            help="Write the setting to this .json file; beside it a page (.html) and a folder (.work), to resume."
        ),
    ],
    model: options.ModelName = "scenes",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Read examples from this file: JSON lines or a JSON list of image(s) and prompt, with or without "
            "answers; or LLaVA's conversations. Else drawn scenes."
        ),
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="Largest loss to accept, such as 1%; the cheapest is chosen.")
    ] = None,
    speed: Annotated[
        str | None,
        typer.Option(help="Speed to reach, such as 2x, end to end; the least loss is chosen."),
    ] = None,
    loss_of: Annotated[
        str,
        typer.Option(
            help="What is lost: answers (another answer than unpruned), words (of it), or score (of right answers, by "
            "the rows' metric)."
        ),
    ] = "answers",
    confidence: Annotated[str, typer.Option(help="Confidence of the certificate.")] = "95%",
    cost: Annotated[
        str, typer.Option(help=f"What is to be least: {', '.join(COSTS)} (measured here).")
    ] = "flops",
    new_tokens: Annotated[
        int, typer.Option(min=1, help="Length of answers, for seconds and speed.")
    ] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Prompts at once, for seconds and speed.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of rows of --data.")] = None,
    pictures: Annotated[
        int, typer.Option(min=1, help="Number of drawn scenes, without --data.")
    ] = 100,
    tasks: Annotated[
        str, typer.Option(help=f"Tasks on drawn scenes, separated by commas: {', '.join(TASKS)}.")
    ] = _TASKS,
    also: Annotated[
        list[str] | None,
        typer.Option(
            "--also",
            help="A method to try beside the portfolio; a knob written as keep=? is tuned. May be repeated.",
        ),
    ] = None,
    search: Annotated[bool, typer.Option(help="Search counts by layer, too (G-Search).")] = True,
    guard: Annotated[
        bool, typer.Option("--guard", help="Let inputs unlike the examples run unpruned.")
    ] = False,
    size: Annotated[int, typer.Option(min=1, help="Number of examples that answer together.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the division of the data.")] = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
) -> None:
    """Choose a setting for a model by examples of its use, and certify it on others.

    A third of the pictures choose, the others certify. Interrupt and give the same command again to go on.
    """
    wish = Wish(
        risk=None if loss is None else share(loss, "--loss"),
        speed=None if speed is None else times(speed),
        loss=loss_of,
        confidence=share(confidence, "--confidence"),
        cost=cost,
        new_tokens=new_tokens,
        batch=batch,
        search=search,
        guard=guard,
        seed=seed,
        size=size,
    )
    _check(out, wish)
    asked = _asked(data, limit, tasks, pictures, seed)
    for reason in asked.unusable:
        errors.print(f"not used: {reason}", highlight=False, markup=False)
    among = launched()
    loaded = load(model, device=among.device(device), dtype=dtype)
    known = presets(loaded.anatomy.family, model)
    more = [*(also or []), *(preset.method for preset in known)]
    with errors.status("tuning") as status:
        tuning = Tuning(
            loaded, wish, asked, out.with_suffix(".work"), more, among, tell=status.update
        )
        outcome = tuning.run()
        if among.index:
            return
        outcome.file.save(out)
        status.update("drawing examples")
        examples = _shown(loaded, asked, outcome)
    hints = _hints(model, out)
    document = out.with_suffix(".html")
    page.write(page.render(outcome, wish, examples, hints), document)
    if as_json:
        print_json(outcome.file.body())
    else:
        _print(outcome, wish, hints)
    wrote(out, f"the setting; use it by --method tuned:{out}")
    wrote(document, "everything tried, the certificate and examples, to open in a browser")
    wrote(out.with_suffix(".work"), "answers and trials, to resume")


def share(text: str, option: str) -> float:
    """A share from text such as 1% or 0.01.

    Raises:
        ValueError: it is none.
    """
    number, unit = (text[:-1], 0.01) if text.endswith("%") else (text, 1.0)
    try:
        found = float(number) * unit
    except ValueError:
        found = float("nan")
    if not 0 < found < 1:
        raise ValueError(f"{option} {text!r}; expected a share such as 1% or 0.01, below 100%")
    return found


def times(text: str) -> float:
    """A factor from text such as 2x or 2.

    Raises:
        ValueError: it is none.
    """
    try:
        found = float(text.removesuffix("x"))
    except ValueError:
        found = float("nan")
    if not found > 1:
        raise ValueError(f"--speed {text!r}; expected a factor above 1, such as 2x")
    return found


def _check(out: Path, wish: Wish) -> None:
    if out.suffix != ".json":
        raise ValueError(f"cannot write {out}: expected a name that ends in .json")
    options.writable(out)
    options.check_page(out.with_suffix(".html"))
    if wish.loss not in LOSSES:
        raise ValueError(f"--loss-of {wish.loss}; expected one of {', '.join(LOSSES)}")


def _asked(data: Path | None, limit: int | None, tasks: str, pictures: int, seed: int) -> Asked:
    """The examples, apart in two."""
    if data is None:
        names = [name.strip() for name in tasks.split(",") if name.strip()]
        samples = bundled(names, None, 0, split=SPLITS[1], pictures=pictures)
        return apart(f"scenes: {','.join(names)}", samples, seed)
    samples, unusable = prompts_in(data, limit)
    return apart(data.name, samples, seed, unusable)


def _shown(loaded: Loaded, asked: Asked, outcome: Outcome) -> list[page.Shown]:
    """Examples of the test: those whose answers differ first, then one of each picture."""
    if outcome.chosen is None:
        return []
    setting = parse(outcome.chosen.spec)
    rows = outcome.answers[outcome.chosen.spec]
    pairs = list(zip(asked.certify, outcome.answers["unpruned"], rows, strict=False))
    firsts = {sample.group: sample.key for sample, _, _ in reversed(pairs)}
    pairs.sort(
        key=lambda pair: (
            pair[1].answer == pair[2].answer,
            firsts[pair[0].group] != pair[0].key,
        )
    )
    return [
        page.shown(loaded, sample, setting, [("unpruned", was.answer), ("tuned", now.answer)])
        for sample, was, now in pairs[:_EXAMPLES]
    ]


def _hints(model: str, out: Path) -> list[Hint]:
    """The three commands that use the setting."""
    spec = f"tuned:{out}"
    chosen = ["--model", model, "--method", spec]
    return [
        Hint(shlex.join(["foveate", "generate", "PHOTO.jpg", "QUESTION", *chosen]), "Answer"),
        Hint(
            shlex.join(["foveate", "eval", *chosen, "--data", "OTHERS.jsonl", "--metric", "exact"]),
            "Measure it on other data",
        ),
        Hint(
            shlex.join(["foveate", "serve", model, "--method", spec]),
            "Serve it with vLLM",
        ),
    ]


def _print(outcome: Outcome, wish: Wish, hints: list[Hint]) -> None:
    """The finalists, the choice, the certificate, and what to type next."""
    columns = ("cost", "lost, chosen on", "lost, tested", "at most")
    faster = any(one.faster for one in outcome.finalists)
    table = Sheet(
        "setting",
        (*columns, "faster") if faster else columns,
        title="finalists, in the order of their tests",
    )
    for one in outcome.finalists:
        verdict = one.verdict
        cells = [f"{one.cost:.3f}", percent(one.loss)]
        cells += ["", ""] if verdict is None else [percent(verdict.loss), percent(verdict.upper)]
        if faster:
            cells.append("" if one.faster is None else f"{one.faster:.2f}x")
        table.add(one.label, *cells)
    console.print(table)
    found = outcome.file.certificate
    chosen = "the unpruned model" if outcome.chosen is None else outcome.file.method
    console.print(
        f"chosen: [bold]{chosen}[/bold], {found['cost']:.3f} of the cost", highlight=False
    )
    style = "green" if found["holds"] else "yellow"
    console.print(f"[{style}]{found['sentence']}[/{style}]", highlight=False)
    if found.get("worst"):
        worst = found["worst"]
        console.print(
            f"worst kind of question: {worst['kind']}, {percent(worst['loss'])} lost on {worst['examples']} examples",
            highlight=False,
        )
    if outcome.outside is not None:
        console.print(
            f"inputs unlike the examples run unpruned: {percent(outcome.outside)} of those that certify",
            highlight=False,
        )
    for hint in hints:
        console.print(
            f"  {hint.command}  [dim]{hint.purpose}[/dim]", highlight=False, soft_wrap=True
        )
