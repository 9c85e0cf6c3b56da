"""`foveate search`: a schedule for a model, its data and a metric, in one file that every command takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..artefacts.schedules import ScheduleFile
from ..artefacts.weighting import Weighting
from ..explore.schedule import plot_schedules
from ..models.load import load
from ..processes import launched
from ..tune.examples import Examples, file_examples, folder_examples, scene_examples
from ..tune.search.costs import COSTS
from ..tune.search.objective import OBJECTIVES
from ..tune.search.premise import premise
from ..tune.search.search import Data, Search, find_schedule
from ..tune.search.strategies import settled, strategies
from . import options, tables
from .output import console, errors, print_json, wrote
from .sheet import Sheet


def search(
    out: Annotated[
        Path,
        typer.Option(
            help="Write the schedule to this .json file; beside it .trials.jsonl records the trials, to resume."
        ),
    ],
    model: options.ModelName = "scenes",
    algorithm: Annotated[
        str, typer.Option(help=f"Search strategy: {', '.join(strategies())}.")
    ] = "gsearch",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Read examples from this file (JSON lines or a JSON list of image, prompt, response; or LLaVA's "
            "conversations), or from a folder of such files; else drawn scenes."
        ),
    ] = None,
    kinds: Annotated[
        str, typer.Option(help="Questions about drawn scenes, separated by commas.")
    ] = "description,caption",
    calibration: Annotated[int, typer.Option(min=1, help="Number of examples to search on.")] = 64,
    held_out: Annotated[int, typer.Option(min=1, help="Number of examples to report on.")] = 64,
    objective: Annotated[
        str, typer.Option(help=f"Measure of quality: {', '.join(OBJECTIVES)}.")
    ] = "kl",
    by_kind: Annotated[
        bool,
        typer.Option(
            "--by-kind",
            help="Let the tolerance hold for every kind of prompt (the rows' kind), in place of the mean over all.",
        ),
    ] = False,
    ranking: options.Ranking = "last",
    within: Annotated[
        str, typer.Option(help="Rank tokens within the sample, or within each image.")
    ] = "sample",
    weigh: options.Weigh = "none",
    merge: options.Merge = "none",
    strength: options.Strength = 1.0,
    place: options.Place = None,
    cutoff: options.Cutoff = None,
    start_layer: Annotated[
        int, typer.Option(min=0, help="The first layer before which tokens may leave.")
    ] = 2,
    tolerance: Annotated[
        float | None, typer.Option(help="Loss of quality to accept (gsearch 0.01, vtw 0.003).")
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="Variant of gsearch: bisect or bayes.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Number of layers that share a count (gsearch: 1).")
    ] = None,
    grid: Annotated[
        int | None, typer.Option(help="Counts are multiples of 1/grid (gsearch: 32).")
    ] = None,
    weight: Annotated[
        float | None, typer.Option(help="Weight of the cost (gsearch, bayes: 0.1).")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Cost relative to the unpruned model (psigmoid, random, fitprune)."),
    ] = None,
    cost: Annotated[
        str, typer.Option("--budget-of", help=f"Measure of cost for --budget: {', '.join(COSTS)}.")
    ] = "keep",
    trials: Annotated[
        int | None, typer.Option(help="Number of schedules to try (psigmoid, random: 24).")
    ] = None,
    warm: Annotated[
        str | None, typer.Option(help="Schedule file whose fit psigmoid tries first.")
    ] = None,
    batch: Annotated[
        int,
        typer.Option(
            min=1,
            help="Number of examples per forward; a bad schedule is abandoned between forwards.",
        ),
    ] = 8,
    cache_gb: Annotated[
        float,
        typer.Option(
            min=0, help="Memory for states kept between trials, in GB; the rest is recomputed."
        ),
    ] = 2.0,
    seed: Annotated[int, typer.Option(help="Seed of random choices.")] = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    plot: Annotated[
        Path | None, typer.Option(help="Draw the schedule to this .png, .svg or .pdf file.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Search what each layer must keep; interrupt and give the same command again to go on."""
    knobs = {
        "tolerance": tolerance,
        "variant": variant,
        "stride": stride,
        "grid": grid,
        "weight": weight,
    }
    knobs |= {"budget": budget, "trials": trials, "warm": warm}
    numbers = {
        "objective": objective,
        "cost": cost,
        "ranking": ranking,
        "within": within,
        "first": start_layer,
    }
    numbers |= {"batch": batch, "cache_gb": cache_gb, "seed": seed}
    numbers["by_kind"] = by_kind
    numbers["weighting"] = Weighting(weigh, merge, strength, place, cutoff)
    plan = _plan(algorithm=algorithm, knobs=settled(algorithm, knobs), **numbers)
    _check_paths(out, plot)
    used = _data(data, kinds, calibration, held_out)
    found = _run(plan, used, model, out, device, dtype, as_json)
    if found is not None:
        _finish(found, plan, model, out, plot, as_json)


def _finish(
    found: ScheduleFile, plan: Search, model: str, out: Path, plot: Path | None, as_json: bool
) -> None:
    """Writes the schedule, draws it, prints it."""
    found.save(out)
    if plot is not None:
        plot_schedules({out.stem: found.keep}, f"{model}, {plan.algorithm}", plot)
    if as_json:
        print_json(
            {
                "keep": found.keep,
                "costs": found.costs,
                "scores": found.scores,
                "search": found.search,
            }
        )
    else:
        _print(found, plan)
    wrote(out, f"the schedule; use it by --method schedule:{out}")
    wrote(out.with_suffix(".trials.jsonl"), "every trial, to resume")
    if plot is not None:
        wrote(plot, "the schedule as a staircase")


def _plan(**numbers: Any) -> Search:
    if numbers["within"] not in ("sample", "image"):
        raise ValueError(f"--within {numbers['within']}; expected sample or image")
    if numbers["cost"] not in COSTS:
        raise ValueError(f"--budget-of {numbers['cost']}; expected one of {', '.join(COSTS)}")
    variant = numbers["knobs"].get("variant", "bisect")
    if variant not in ("bisect", "bayes"):
        raise ValueError(f"--variant {variant}; expected bisect or bayes")
    return Search(**numbers)


def _check_paths(out: Path, plot: Path | None) -> None:
    if not out.parent.is_dir():
        raise ValueError(f"cannot write {out}: there is no folder {out.parent}")
    if out.suffix != ".json":
        raise ValueError(f"cannot write {out}: expected a name that ends in .json")
    if plot is not None:
        options.check_picture(plot)


def _data(path: Path | None, kinds: str, wanted: int, held_out: int) -> Data:
    """Calibration and held-out examples: of a file, the last rows are held out, a third of them at most."""
    if path is None:
        asked = [kind.strip() for kind in kinds.split(",")]
        parts = (
            scene_examples(split, count, 0, asked).rows
            for split, count in (("train", wanted), ("val", held_out))
        )
        return Data(f"scenes: {','.join(asked)}", *parts)
    found: Examples = folder_examples(path) if path.is_dir() else file_examples(path)
    for reason in found.unusable:
        errors.print(f"not used: {reason}", highlight=False)
    apart = min(held_out, max(1, len(found.rows) // 3))
    if len(found.rows) < 2:
        raise ValueError(
            f"{path} has one usable row; at least two are needed, to search and to report"
        )
    return Data(path.name, found.rows[:-apart][:wanted], found.rows[-apart:])


def _run(
    plan: Search, used: Data, model: str, out: Path, device: str, dtype: str, quiet: bool
) -> ScheduleFile | None:
    """The premise, then the search, with its trials as they come; None in all processes but the first."""
    together = launched()
    loaded = load(model, device=together.device(device), dtype=dtype)
    if plan.algorithm == "gsearch" and not quiet and together.index == 0:
        tables.print_premise(premise(loaded, used.calibration[:16], plan.ranking))
    record = out.with_suffix(".trials.jsonl")
    count = 0
    with errors.status("searching") as status:

        def report(schedule: str) -> None:
            nonlocal count
            count += 1
            status.update(f"trial {count}: {schedule}")

        found = find_schedule(loaded, plan, used, model, record, together, report)
    return found if together.index == 0 else None


def _print(found: ScheduleFile, plan: Search) -> None:
    table = Sheet("layer", ("kept",), title="visual tokens kept, %")
    for layer, share in enumerate(found.keep):
        table.add(str(layer), f"{100 * share:.1f}")
    console.print(table)
    costs = ", ".join(f"{name} {value:.3f}" for name, value in found.costs.items())
    console.print(f"cost over unpruned: {costs}", highlight=False)
    for title, scores in found.scores.items():
        if title == "held out, by kind":
            kinds = ", ".join(f"{kind or 'no kind'} {gap:+.4f}" for kind, gap in scores.items())
            console.print(f"held out, difference by kind: {kinds}", highlight=False)
        elif isinstance(scores, dict):
            parts = [
                f"{name} {s['value']:.4f} ({s['low']:.4f} to {s['high']:.4f})"
                for name, s in scores.items()
            ]
            console.print(f"{title}: " + ", ".join(parts), highlight=False)
    spent = ", ".join(f"{name} {value:.4g}" for name, value in found.search.items())
    console.print(f"searching: {spent}", highlight=False)
    if min(found.keep) == 1:
        console.print(
            "[yellow]warning:[/yellow] nothing could be dropped; allow more, or try another --ranking"
        )
    gap = found.scores["held out"]["difference"]
    if "tolerance" in plan.knobs and gap["value"] < -plan.knobs["tolerance"]:
        console.print(
            f"[yellow]warning:[/yellow] on held-out examples {-gap['value']:.4f} is given up, more than the tolerance "
            f"of {plan.knobs['tolerance']:g}; search on more examples, or with less tolerance",
            highlight=False,
        )
