"""Every answer at every rate: run once, and learned from as often as wanted, at any budget.

Shapes: E answers, K rates, H heads, B answers of a batch, S steps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ....core.predictor import RatePredictor
from ....cost.flops import Shapes, shapes
from ....models.loaded import Loaded
from ....processes import ALONE, Processes
from ...examples import Example
from .flops import flops
from .gradients import divergences
from .plan import Plan, write
from .rollout import answer_losses, at_every_rate, batch_of

Report = Callable[[dict[str, float]], None]
_SAVE_EVERY = 10  # batches


@dataclass(frozen=True)
class Table:
    """Answers at each of several rates, chosen at the prefill and kept.

    Attributes:
        loss: cross-entropy of each answer, mean over its words, nats.
        divergence: KL from the unpruned model (the rate 0), mean over its words, nats.
        flops: of prefill and decode of each.
        full: those of the unpruned model.
        shares: what the predictor sees at the prefill.
    """

    loss: Float[Tensor, "E K"]
    divergence: Float[Tensor, "E K"]
    flops: Float[Tensor, "E K"]
    full: Float[Tensor, "E"]  # noqa: UP037
    shares: Float[Tensor, "E H 4"]


def tabulate(
    loaded: Loaded,
    examples: Sequence[Example],
    plan: Plan,
    path: Path | None = None,
    source: str = "",
    report: Report | None = None,
    processes: Processes = ALONE,
) -> Table:
    """Runs every example at every rate of the plan.

    The layers below the prune layer run once for all rates.

    Args:
        loaded: of a supported family.
        examples: prompts with answers.
        plan: layer, ranking, rates, batch, weights and means; its other numbers do not matter here,
            so one table serves all budgets.
        path: where to keep what is done, and to go on from.
        source: marks model and data.
        report: called after each batch that runs, with `step`, `steps`, and mean losses at the
            first, a middle and the last rate.
        processes: that share the batches; each keeps a file of its own, and all get the whole
            table.

    Raises:
        ValueError: `path` holds answers of another layer, ranking, rates, weights, model or data.
    """
    batches = _batches(examples, plan.batch)[processes.index :: processes.count]
    path = _own(path, processes)
    of = [plan.layer, plan.ranking, plan.rates, plan.batch, plan.protect]
    if plan.weighting.facts:
        of.append(plan.weighting.facts)
    facts = {"of": json.dumps(of), "source": source}
    rows = _resume(path, facts)  # the table so far, and "at": which example each of its rows is of
    done = {int(i) for i in rows["at"]} if rows else set()
    shape = shapes(loaded.model)
    for step, batch in enumerate(batches):
        new = batch[0] not in done
        last = step + 1 == len(batches)
        if new:
            found = _run(loaded, [examples[i] for i in batch], plan, shape)
            found["at"] = torch.tensor(batch, dtype=torch.long, device="cpu")
            rows = _appended(rows, found)
            if path is not None and (step % _SAVE_EVERY == 0 or last):
                write(path, rows, facts)
        if report is not None and (new or last):
            report({"step": step + 1, "steps": len(batches), **_so_far(rows["loss"])})
    return _in_order(processes.gather(rows))


def _appended(rows: dict[str, Tensor], found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The rows found behind those before, if there are any."""
    if not rows:
        return found
    return {key: torch.cat([rows[key], value]) for key, value in found.items()}


def _batches(examples: Sequence[Example], size: int) -> list[list[int]]:
    """Numbers of the examples, those of like length together, for little padding."""
    order = sorted(range(len(examples)), key=lambda i: (len(examples[i].answer), i))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _so_far(loss: Float[Tensor, "E K"]) -> dict[str, float]:
    """Mean losses with all tokens, at a middle rate, and with the fewest."""
    means = loss.mean(0).tolist()
    return {"all": means[0], "half": means[len(means) // 2], "least": means[-1]}


@torch.no_grad()
def _run(
    loaded: Loaded, examples: Sequence[Example], plan: Plan, shape: Shapes
) -> dict[str, Float[Tensor, ...]]:
    """The table's rows of some examples."""
    batch, text, total = batch_of(loaded, examples)
    predictor = RatePredictor(loaded.anatomy.heads, plan.rates)
    shares, answers = at_every_rate(
        loaded.model, predictor, plan.score, plan.layer, batch, plan.weighting
    )
    losses = []
    divergence = []
    spent = []
    plain = None
    for logits, kept in answers:  # (B S V), (B S): one rate after the other
        chances = logits.float().log_softmax(-1)
        plain = chances if plain is None else plain  # the first rate keeps all
        losses.append(answer_losses(logits, batch))
        divergence.append(divergences(plain, chances, batch))
        spent.append(flops(shape, plan.layer, text, total, kept, batch.answered))
    everything = total[:, None].expand_as(batch.answered).float()  # (B S)
    full = flops(shape, plan.layer, text, total, everything, batch.answered)
    found = {
        "loss": torch.stack(losses, 1),  # (B K)
        "divergence": torch.stack(divergence, 1),
        "flops": torch.stack(spent, 1),
        "full": full,
        "shares": shares.float(),
    }
    return {key: value.cpu() for key, value in found.items()}


def _resume(path: Path | None, facts: dict[str, str]) -> dict[str, Tensor]:
    """The rows of an earlier run; none if there is no file.

    Raises:
        ValueError: the file is of another plan, model or data.
    """
    if path is None or not path.exists():
        return {}
    with safe_open(path, "pt") as file:
        stored = file.metadata()
    if stored.get("of") != facts["of"]:
        raise ValueError(
            f"{path} holds answers at another layer, ranking, rates or batch, or with other weights "
            "and means; give another file or folder"
        )
    if stored.get("source") != facts["source"]:
        raise ValueError(
            f"{path} holds answers of another model or other data; give another file or folder"
        )
    return load_file(path)


def _own(path: Path | None, processes: Processes) -> Path | None:
    """The file of this process."""
    if path is None or processes.count == 1:
        return path
    return path.with_stem(f"{path.stem}-{processes.index}-of-{processes.count}")


def _in_order(parts: list[dict[str, Tensor]]) -> Table:
    """The table of all processes' rows, in the order of the examples."""
    filled = [part for part in parts if part]  # a process may have had no batch
    rows = {key: torch.cat([part[key] for part in filled]) for key in filled[0]}
    order = rows.pop("at").argsort()
    return Table(**{key: value[order] for key, value in rows.items()})
