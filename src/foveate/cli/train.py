"""`foveate train dyrate`: a predictor of DyRate for any model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..artefacts.predictors import Card, save_pretrained
from ..artefacts.weighting import Weighting
from ..core.predictor import RatePredictor
from ..core.scores import RANKINGS
from ..models.load import load
from ..models.loaded import Loaded
from ..processes import launched
from ..tune.examples import Example, Examples, file_examples, folder_examples, scene_examples
from ..tune.train.dyrate.adapting import Beside, compare
from ..tune.train.dyrate.judge import HeldOut, calibrate, judge, ratio_of
from ..tune.train.dyrate.plan import Plan
from ..tune.train.dyrate.train import ANSWERS, source_of, train
from ..versions import versions
from ..world.language import KINDS
from . import options
from .output import console, errors, wrote

app = typer.Typer(help="Train what a method needs for a model.", no_args_is_help=True)
_KINDS = tuple(kind for asked in KINDS for kind in ("description", "caption", asked))


@app.callback()
def training() -> None:
    """Train what a method needs for a model."""


Data = Annotated[
    Path | None,
    typer.Option(
        help="Learn from this file (JSON lines or a JSON list of image, prompt, response; or LLaVA's conversations), "
        "or from a folder of such files; else from drawn scenes."
    ),
]


Budget = Annotated[
    float, typer.Option(help="FLOPs of prefill and decode, relative to the unpruned model.")
]
Ranking = Annotated[str, typer.Option(help=f"Which tokens go first: {', '.join(RANKINGS)}.")]
Decode = Annotated[
    bool, typer.Option(help="Whether it decides before decode steps too, or in the prefill alone.")
]
Protect = Annotated[
    str, typer.Option(help="unseen: what the answer has not looked at leaves last.")
]
Exact = Annotated[
    bool,
    typer.Option(
        "--exact/--masks",
        help="Learn from all rates of every answer; or through masks, as the paper.",
    ),
]
Answers = Annotated[
    Path | None,
    typer.Option(
        help="Keep the answers of --exact, which serve every budget, in this file; else in --out."
    ),
]


@app.command("dyrate")
def train_dyrate(
    out: Annotated[
        Path,
        typer.Option(
            help="Write checkpoint and predictor to this folder; give it again to resume."
        ),
    ],
    model: options.Model = "scenes",
    data: Data = None,
    budget: Budget = Plan.budget,
    layer: Annotated[
        int, typer.Option(help="Layer before which the predictor decides.")
    ] = Plan.layer,
    ranking: Ranking = Plan.ranking,
    num_rates: Annotated[
        int, typer.Option(help="Number n of rates to choose from: 0, 1/n, .. (n-1)/n.")
    ] = Plan.num_rates,
    drop_all: Annotated[
        bool, typer.Option(help="Whether dropping all is a rate too (our extension).")
    ] = Plan.drop_all,
    decode: Decode = Plan.decode,
    protect: Protect = Plan.protect,
    weigh: options.Weigh = "none",
    merge: options.Merge = "none",
    strength: options.Strength = 1.0,
    place: options.Place = None,
    cutoff: options.Cutoff = None,
    response: Annotated[
        bool, typer.Option(help="Whether the response's share is a feature.")
    ] = Plan.response,
    steps: Annotated[
        int,
        typer.Option(min=1, help="Number of optimiser steps; with --exact, of batches of answers."),
    ] = Plan.steps,
    batch: Annotated[
        int, typer.Option(min=1, help="Number of examples per step, over all processes.")
    ] = Plan.batch,
    parts: Annotated[
        int, typer.Option(min=1, help="Number of parts in which a batch is run, to save memory.")
    ] = Plan.parts,
    lr: Annotated[
        float, typer.Option(help="Learning rate at the start; a tenth of it at the end.")
    ] = Plan.lr,
    kl: Annotated[
        float, typer.Option(help="Weight of the divergence from the unpruned model.")
    ] = Plan.kl,
    weight: Annotated[float, typer.Option(help="Weight of the budget in the loss.")] = Plan.weight,
    exact: Exact = Plan.exact,
    answers: Answers = None,
    cold: Annotated[
        float, typer.Option(help="Temperature of sampling at the end (2 at the start).")
    ] = Plan.cold,
    seed: Annotated[int, typer.Option(help="Seed of the sampled rates.")] = Plan.seed,
    held_out: Annotated[
        int, typer.Option(min=1, help="Number of held-out examples for the report.")
    ] = 64,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
) -> None:
    """Train DyRate's predictor for a model, meet its budget, and report on held-out data."""
    plan = Plan(
        budget, layer, num_rates, ranking, response, steps, batch, lr, weight, kl=kl, cold=cold, seed=seed,
        drop_all=drop_all, parts=parts, decode=decode, protect=protect, exact=exact,
        weighting=Weighting(weigh, merge, strength, place, cutoff),
    )  # fmt: skip
    if answers is not None and not exact:
        raise ValueError(f"--answers {answers} goes with --exact; add it, or leave --answers out")
    learned, judged_on = _data(data, steps * batch, held_out)
    loaded = load(model, device=launched().device(device), dtype=dtype)
    predictor = _train(loaded, learned, plan, out, answers)
    met = _met(loaded, predictor, learned.rows[:held_out], plan)
    found = judge(loaded, predictor, judged_on.rows, plan)
    beside = _beside(loaded, judged_on, plan, found.ratio, answers or out / ANSWERS)
    card = _card(model, loaded, plan, data, len(learned.unusable), found, met, beside)
    save_pretrained(predictor, card, out)
    _print(found, beside, plan, len(judged_on.rows), out)


def _train(
    loaded: Loaded, learned: Examples, plan: Plan, out: Path, answers: Path | None
) -> RatePredictor:
    """The training, with a progress bar."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors) as progress:
        task = progress.add_task("training", total=plan.steps)

        def report(seen: dict[str, float]) -> None:
            line = " ".join(f"{k} {v:.3f}" for k, v in seen.items() if k not in ("step", "steps"))
            progress.update(
                task, completed=seen["step"], total=seen.get("steps", plan.steps), description=line
            )

        return train(loaded, learned.rows, plan, out, report, answers=answers)


def _met(loaded: Loaded, predictor: RatePredictor, examples: list[Example], plan: Plan) -> float:
    """The FLOPs over unpruned that the likeliest rates come to; what is exact has met the budget on all its answers."""
    console.print("meeting the budget with the likeliest rates")
    return (ratio_of if plan.exact else calibrate)(loaded, predictor, examples, plan)


def _beside(loaded: Loaded, judged_on: Examples, plan: Plan, ratio: float, answers: Path) -> Beside:
    """The controls; what is exact keeps their answers beside its own, for other budgets."""
    path = answers.with_stem(f"{answers.stem}-held-out") if plan.exact else None
    return compare(
        loaded, judged_on.rows, plan, ratio, path, source_of(loaded.model, judged_on.rows)
    )


def _data(path: Path | None, wanted: int, held_out: int) -> tuple[Examples, Examples]:
    """Training and held-out examples: of a file, the last rows, a tenth at most, are held out; names unusable rows."""
    if path is None:
        return scene_examples("train", min(wanted, 4000), 0, _KINDS), scene_examples(
            "val", held_out, 0, _KINDS
        )
    found = folder_examples(path) if path.is_dir() else file_examples(path)
    apart = min(held_out, max(1, len(found.rows) // 10))
    if len(found.rows) < 2:
        raise ValueError(
            f"{path} has one usable row; at least two are needed, to train and to report"
        )
    for reason in found.unusable:
        errors.print(f"not used: {reason}", highlight=False)
    return Examples(found.rows[:-apart], found.unusable), Examples(found.rows[-apart:])


def _card(
    name: str,
    loaded: Loaded,
    plan: Plan,
    data: Path | None,
    unusable: int,
    found: HeldOut,
    calibrated: float,
    beside: Beside,
) -> Card:
    text = loaded.decoder.config
    facts = {
        "plan": plan.facts,
        "data": "scenes" if data is None else data.name,
        "unusable rows": unusable,
        "held out": {
            **asdict(found),
            **asdict(beside),
            "kept_by_step": [round(k, 4) for k in found.kept_by_step],
        },
        "ratio on training data after calibration": calibrated,
        "versions": versions(),
        "revision": getattr(loaded.model.config, "_commit_hash", None),
    }
    return Card(
        model=name,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        layer=plan.layer,
        rates=plan.rates,
        response=plan.response,
        ranking=plan.ranking,
        budget=plan.budget,
        training=facts,
        decode=plan.decode,
        protect=plan.protect,
        weighting=plan.weighting,
    )


def _print(found: HeldOut, beside: Beside, plan: Plan, count: int, out: Path) -> None:
    console.print(
        f"held out ({count} examples): FLOPs {found.ratio:.3f} of unpruned (budget {plan.budget:g}), cross-entropy "
        f"{found.loss:.4f}; unpruned {found.unpruned_loss:.4f}; at the same FLOPs one rate for all "
        f"{beside.fixed_loss:.4f}, the best rate of each in hindsight {beside.hindsight_loss:.4f}",
        highlight=False,
    )
    shown = [s for s in (0, 1, 2, 4, 8, 16, 32, 64) if s < len(found.kept_by_step)]
    console.print(
        "kept by step: " + ", ".join(f"{s}: {found.kept_by_step[s]:.0%}" for s in shown),
        highlight=False,
    )
    wrote(out, f"the predictor and its checkpoint; use it by --method dyrate:predictor={out}")
