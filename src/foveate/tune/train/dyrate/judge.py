"""What a predictor does with its likeliest rates, as inference takes them.

And the shift of its bias that meets a budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ....core.predictor import RatePredictor
from ....cost.flops import shapes
from ....models.loaded import Loaded
from ...examples import Example
from .flops import flops
from .plan import Plan
from .rollout import Batch, answer_losses, batch_of, counts, roll_out, unpruned_logits


@dataclass(frozen=True)
class HeldOut:
    """A predictor with its likeliest rates on some examples.

    Attributes:
        ratio: FLOPs of prefill and decode of all answers together over unpruned.
        loss: cross-entropy of the answers, each its mean over its words, nats.
        unpruned_loss: that of the unpruned model.
        kept_by_step: share of visual tokens alive at each step, mean over the answers that reach
            it.
    """

    ratio: float
    loss: float
    unpruned_loss: float
    kept_by_step: tuple[float, ...]


def likeliest(logits: Tensor) -> Tensor:
    """The rate that inference takes, as a one-hot."""
    return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits)


@torch.no_grad()
def judge(
    loaded: Loaded, predictor: RatePredictor, examples: Sequence[Example], plan: Plan
) -> HeldOut:
    """What the predictor does with its likeliest rates, as inference takes them."""
    sums = torch.zeros(
        4, dtype=torch.float64, device="cpu"
    )  # FLOPs, unpruned FLOPs, loss, unpruned loss
    kept = []  # of each answer, the shares alive at its own steps
    for start in range(0, len(examples), plan.batch):
        made = batch_of(loaded, examples[start : start + plan.batch])
        batch, _, total = made
        found = roll_out(
            loaded.model,
            predictor,
            plan.score,
            plan.layer,
            batch,
            likeliest,
            plan.decode,
            plan.weighting,
        )
        loss = float(answer_losses(found.logits, batch).sum())
        unpruned_loss = float(answer_losses(unpruned_logits(loaded.model, batch), batch).sum())
        ours, full = _spent(loaded.model, made, found.kept, plan)
        sums += torch.tensor([ours, full, loss, unpruned_loss], dtype=torch.float64, device="cpu")
        for row, there, whole in zip(found.kept, batch.answered, total.tolist(), strict=True):
            kept.append([count / max(1, whole) for count in row[there].tolist()])
    ours, full, loss, unpruned_loss = sums.tolist()
    return HeldOut(
        ratio=ours / full,
        loss=loss / len(examples),
        unpruned_loss=unpruned_loss / len(examples),
        kept_by_step=_mean_by_step(kept),
    )


def _mean_by_step(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Mean of each step over the rows that reach it."""
    longest = max(map(len, rows))
    means = []
    for step in range(longest):
        reached = [row[step] for row in rows if len(row) > step]
        means.append(sum(reached) / len(reached))
    return tuple(means)


def calibrate(
    loaded: Loaded,
    predictor: RatePredictor,
    examples: Sequence[Example],
    plan: Plan,
    rounds: int = 10,
) -> float:
    """Shifts the predictor's bias until its likeliest rates cost the budget.

    Training meets the budget on average over sampled rates; inference takes the likeliest, which
    may cost more or less. The shift, towards high rates or away from them, is proportional to the
    rate, so that the order of situations stays as learned. It is found by bisection in `rounds`.

    Returns:
        The ratio then met on `examples`.
    """
    rates = torch.tensor(predictor.rates, device=loaded.model.device, dtype=torch.float32)
    base = predictor.linear.bias.detach().clone()
    low = -30.0
    high = 30.0
    least_error = math.inf
    best = base
    for _ in range(rounds):
        middle = (low + high) / 2
        predictor.linear.bias.data.copy_(base + middle * rates)
        ratio = ratio_of(loaded, predictor, examples, plan)
        error = abs(ratio - plan.budget)
        if error < least_error:  # the last round need not be the nearest: ratios move in steps
            least_error = error
            best = predictor.linear.bias.detach().clone()
        if ratio > plan.budget:
            low = middle
        else:
            high = middle
    predictor.linear.bias.data.copy_(best)
    return ratio_of(loaded, predictor, examples, plan)


def ratio_of(
    loaded: Loaded, predictor: RatePredictor, examples: Sequence[Example], plan: Plan
) -> float:
    """`HeldOut.ratio` alone, without running what only the loss needs."""
    sums = torch.zeros(2, dtype=torch.float64, device="cpu")
    for start in range(0, len(examples), plan.batch):
        made = batch_of(loaded, examples[start : start + plan.batch])
        kept = counts(
            loaded.model,
            predictor,
            plan.score,
            plan.layer,
            made[0],
            likeliest,
            plan.decode,
            plan.weighting,
        )
        sums += torch.tensor(
            _spent(loaded.model, made, kept, plan), dtype=torch.float64, device="cpu"
        )
    return float(sums[0] / sums[1])


def _spent(
    model: Any, made: tuple[Batch, Tensor, Tensor], kept: Tensor, plan: Plan
) -> tuple[float, float]:
    """FLOPs with these counts, and unpruned."""
    batch, text, total = made
    shape = shapes(model)
    everything = total[:, None].expand_as(kept).to(kept)  # (B S)
    ours = flops(shape, plan.layer, text, total, kept, batch.answered)
    full = flops(shape, plan.layer, text, total, everything, batch.answered)
    return float(ours.double().sum()), float(full.double().sum())
