"""`foveate eval`: methods judged on tasks, beside the unpruned model and at equal work."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..core.method import Method
from ..cost.flops import shapes
from ..eval import equal_work as equal
from ..eval import records, report
from ..eval.answers import answer, evaluate, fingerprint
from ..eval.decoding import Decoding
from ..eval.metrics import tokenizer_of
from ..eval.records import Record
from ..eval.tasks import SPLITS, TASKS, Sample, bundled, from_file, identity
from ..files import write_text
from ..methods import parse
from ..models.load import load
from ..models.loaded import Loaded
from ..processes import Processes, launched
from ..versions import versions
from . import options
from .output import console, errors, print_json, write_json, wrote
from .sheet import Sheet

_LIMIT = 200  # samples of a task, if no option says otherwise
_TUNE_ON = 16  # samples that a method runs on, again and again, if no plan tells its cost


def evaluate_methods(
    method: options.Methods = None,
    model: options.Model = "scenes",
    tasks: Annotated[
        str, typer.Option(help=f"Tasks, separated by commas: {', '.join(TASKS)}.")
    ] = "",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Read samples from this file: JSON lines or a JSON list of image(s), prompt, references, metric; or "
            "of LLaVA's conversations."
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Metric for rows of --data that name none; several are separated by commas."
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of samples per task and of --data. [200, unless --pictures is given]",
        ),
    ] = None,
    pictures: Annotated[
        int | None,
        typer.Option(min=1, help="Number of pictures per task, with all their questions."),
    ] = None,
    first: Annotated[
        int, typer.Option(min=0, help="Number of the first picture of each task.")
    ] = 0,
    split: Annotated[
        str, typer.Option(help=f"Split of the drawn scenes: {' or '.join(SPLITS)}.")
    ] = "test",
    batch: Annotated[int, typer.Option(min=1, help="Number of samples per batch.")] = 16,
    match: options.Match = None,
    also: options.Also = None,
    against: Annotated[
        str | None, typer.Option(help="Compare the methods with this one of them, too.")
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Write report.json and every answer to this folder; give it again to resume."
        ),
    ] = None,
    tokenizer: Annotated[
        str, typer.Option(help="Word splitter for captions: ptb (needs java), words, or auto.")
    ] = "auto",
    num_beams: Annotated[int, typer.Option(min=1, help="Number of beams; 1 is greedy.")] = 1,
    top_k: Annotated[
        int, typer.Option(min=0, help="Sample from this number of the likeliest tokens.")
    ] = 0,
    top_p: Annotated[
        float, typer.Option(help="Sample from the likeliest tokens that hold this probability.")
    ] = 1.0,
    temperature: Annotated[float, typer.Option(help="Temperature of sampling.")] = 1.0,
    cache: Annotated[
        bool, typer.Option(help="Keep keys and values, or run the whole input at every step.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap and of sampling.")] = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
) -> None:
    """Judge methods on tasks, with intervals and paired differences to the unpruned model.

    Under torchrun all processes share the work.
    """
    target = equal.read_target(match) if match else None
    specs = list(dict.fromkeys(method or []))
    as_given = list(dict.fromkeys(also or []))
    _check(specs, as_given, target, against)
    decoding = Decoding(num_beams, top_k, top_p, temperature, cache, seed)
    words = tokenizer_of(tokenizer)
    if metric is not None and data is None:
        raise ValueError(f"--metric {metric} goes with --data; the tasks have metrics of their own")
    most = limit or (None if pictures else _LIMIT)
    samples = _samples(tasks, most, pictures, first, split, data)
    if data is not None:
        samples += from_file(data, most, metric)
    among = launched()
    loaded = load(model, device=among.device(device), dtype=dtype)
    body = _identity(loaded, samples, model, batch) | {
        "decoding": asdict(decoding) if decoding.told else None
    }
    _claim(save, body, among)
    runs = _run(loaded, samples, specs, as_given, target, batch, among, save, decoding)
    if among.index:
        return
    body |= _findings(samples, runs, words, seed, against) | {"match": match, "against": against}
    print_json(body) if as_json else _print(body, target)
    _keep(save, body, samples, runs)


def _check(
    specs: Sequence[str], also: Sequence[str], target: equal.Target | None, against: str | None
) -> None:
    """Raises ValueError for what is no method, has no knob to tune, or is to be compared with but
    not run as it is.
    """
    for spec in specs:
        equal.values(equal.marked(spec), 1) if target else parse(spec)
    for spec in also:
        parse(spec)
    whole = [*also, *([] if target else specs)]
    if against is not None and against not in whole:
        said = ", ".join(whole) or "none is given: name it by --also, too"
        raise ValueError(
            f"--against {against}: expected one of the methods that run as they are ({said})"
        )


def _findings(
    samples: Sequence[Sample],
    runs: dict[str, list[Record]],
    words: str,
    seed: int,
    against: str | None,
) -> dict[str, Any]:
    found = report.figures(samples, runs, words, seed, against)
    work = report.costs(runs)
    rows = {spec: {"figures": found[spec], "work": work[spec]} for spec in runs}
    pictures = len({sample.group for sample in samples})
    return {"pictures": pictures, "tokenizer": words, "seed": seed, "methods": rows}


def _identity(loaded: Loaded, samples: Sequence[Sample], model: str, batch: int) -> dict[str, Any]:
    """What a folder of answers is of."""
    return {
        "model": model,
        "weights": fingerprint(loaded.model),
        "dtype": str(loaded.model.dtype),
        "data": identity(samples),
        "samples": len(samples),
        "batch": batch,
        "versions": versions(),
    }


def _samples(
    tasks: str, limit: int | None, pictures: int | None, first: int, split: str, data: Path | None
) -> list[Sample]:
    """The samples of the named tasks; of descriptions, captions and questions if no file is given either."""
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names and data is None:
        names = ["descriptions", "captions", "questions"]
    samples = bundled(names, limit, first, split=split, pictures=pictures) if names else []
    if data is not None and data.stem in names:
        raise ValueError(f"the file {data.name} is named like the task {data.stem!r}; rename it")
    return samples


def _keep(
    save: Path | None,
    body: dict[str, Any],
    samples: Sequence[Sample],
    runs: dict[str, list[Record]],
) -> None:
    """Writes report and samples, where they are to be saved."""
    if save is not None:
        write_json(save / "report.json", body, indent=1)
        write_text(save / "samples.jsonl", "".join(_lines(samples, runs)))
        wrote(
            save,
            "report.json: figures; samples.jsonl: every answer; answers of each method, to resume",
        )


def _claim(save: Path | None, body: dict[str, Any], among: Processes) -> None:
    """Takes the folder for this evaluation, if there is one to take; ValueError if it holds
    another.
    """
    if save is None:
        return
    if save.exists() and not save.is_dir():
        raise ValueError(f"{save} is a file; expected a folder")
    if among.index == 0:
        records.claim(save, body)
    among.wait()


def _run(
    loaded: Loaded,
    samples: Sequence[Sample],
    specs: Sequence[str],
    also: Sequence[str],
    target: equal.Target | None,
    batch: int,
    among: Processes,
    save: Path | None,
    decoding: Decoding,
) -> dict[str, list[Record]]:
    """Records of the unpruned model and of every method, tuned to the target if there is one."""
    runs: dict[str, list[Record]] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors, transient=True, disable=among.index > 0) as progress:

        def answers(spec: str, methods: list[Method]) -> None:
            task = progress.add_task(
                spec, total=len(samples) / among.count if among.count > 1 else len(samples)
            )
            runs[spec] = evaluate(
                loaded, samples, spec, methods, batch, among=among, folder=save, decoding=decoding,
                progress=lambda n: progress.advance(task, n),
            )  # fmt: skip

        answers("unpruned", [])
        for given in specs:
            spec = (
                given
                if target is None
                else _tuned(given, target, loaded, samples, runs["unpruned"], batch)
            )
            answers(spec, parse(spec))
        for spec in also:
            answers(spec, parse(spec))
    return runs


def _tuned(
    spec: str,
    target: equal.Target,
    loaded: Loaded,
    samples: Sequence[Sample],
    plain: Sequence[Record],
    batch: int,
) -> str:
    """The spec with its knob turned to the target."""
    shape = shapes(loaded.model)
    chosen = sorted(range(len(samples)), key=lambda i: samples[i].max_new_tokens)[
        :: max(1, len(samples) // _TUNE_ON)
    ]

    def run(methods: Sequence[Method]) -> list[Record]:
        out: list[Record] = []
        for start in range(0, len(chosen), batch):
            part = chosen[start : start + batch]
            lengths = [
                1 if target.work == "tokens" else plain[i].tokens for i in part
            ]  # tokens are the prefill's
            out += answer(loaded, [samples[i] for i in part], methods, shape, lengths)
        return out

    plan = equal.planned(target, shape, plain)
    work = equal.either(plan, partial(equal.ran, target, run))
    return equal.tune(equal.marked(spec), target, work, len(shape.layers))[0]


def _lines(samples: Sequence[Sample], runs: dict[str, list[Record]]) -> list[str]:
    """One JSON line per sample and method."""
    return [
        json.dumps(
            {
                "method": spec,
                "task": s.task,
                "kind": s.kind,
                "references": s.references,
                **vars(row),
            }
        )
        + "\n"
        for spec, rows in runs.items()
        for s, row in zip(samples, rows, strict=True)
    ]


BESIDE = 4  # methods whose columns fit a terminal beside each other


def _print(body: dict[str, Any], target: equal.Target | None) -> None:
    """Every figure of every method; differences to unpruned, bold where their interval leaves out
    0.
    """
    methods = body["methods"]
    gap = "against" if body["against"] else "difference"
    keys = dict.fromkeys(key for m in methods.values() for key in m["figures"])
    rows = {key: [_cell(m["figures"].get(key), gap) for m in methods.values()] for key in keys}
    for key in ("flops", "prefill", "decode", "bytes", "tokens"):
        cells = [_work(spec, m["work"], key, target) for spec, m in methods.items()]
        rows[f"{key}, of unpruned"] = cells
    beside = _beside(list(methods), rows)
    fits = len(methods) <= BESIDE and beside.fits(console.width)
    console.print(beside if fits else _below(list(methods), rows))
    console.print(
        f"{body['samples']} samples; figures in % (CIDEr x 100, MME in points) with 95 % bootstrap intervals over "
        f"pictures; with them the paired difference to {body['against'] or 'unpruned'}, bold where the interval "
        f"leaves out 0. Caption words: {body['tokenizer']}.",
        highlight=False,
    )


def _beside(methods: Sequence[str], rows: dict[str, list[str]]) -> Sheet:
    """Figures down, methods across: easy to compare, as long as the methods fit beside each other."""
    table = Sheet("figure", tuple(methods))
    for key, cells in rows.items():
        table.add(key, *cells)
    return table


def _below(methods: Sequence[str], rows: dict[str, list[str]]) -> Sheet:
    """A part for each figure, methods down: for as many methods as there are."""
    table = Sheet("method", ("figure", "difference"))
    for key, cells in rows.items():
        table.group(key)
        for spec, cell in zip(methods, cells, strict=True):
            value, _, difference = cell.partition("\n")
            table.add(spec, value, difference)
    return table


def _work(spec: str, work: dict[str, float], key: str, target: equal.Target | None) -> str:
    """A share of the unpruned model's work; red where the methods were to do equal work and this
    one does not.
    """
    off = target and key == target.work and spec != "unpruned"
    red = off and target is not None and abs(work[key] - target.ratio) > 0.01
    return f"[red]{work[key]:.3f}[/red]" if red else f"{work[key]:.3f}"


def _cell(found: dict[str, Any] | None, key: str) -> str:
    if found is None:
        return ""
    gap = found.get(key)
    if math.isnan(found["low"]):  # of one picture: no interval
        return f"{found['value']:.1f}" + (f"\n[dim]{gap['value']:+.1f}[/dim]" if gap else "")
    text = f"{found['value']:.1f} [dim]{found['low']:.0f}-{found['high']:.0f}[/dim]"
    if gap is None:
        return text
    style = "bold" if gap["low"] > 0 or gap["high"] < 0 else "dim"
    return (
        f"{text}\n[{style}]{gap['value']:+.1f} ({gap['low']:+.1f} to {gap['high']:+.1f})[/{style}]"
    )
