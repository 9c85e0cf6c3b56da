"""What a predictor does with its likeliest rates, as inference takes them; and the shift that meets a budget."""

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
        kept_by_step: share of visual tokens alive at each step, mean over the answers that reach it.
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
    sums = torch.zeros(4, dtype=torch.float64)
    kept = []
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
        losses = [
            float(answer_losses(logits, batch).sum())
            for logits in (found.logits, unpruned_logits(loaded.model, batch))
        ]
        sums += torch.tensor(
            [*_spent(loaded.model, made, found.kept, plan), *losses], dtype=torch.float64
        )
        for row, there, whole in zip(
            found.kept.tolist(), batch.answered.tolist(), total.tolist(), strict=True
        ):
            kept.append([k / max(1, whole) for k, t in zip(row, there, strict=True) if t])
    longest = max(map(len, kept))
    by_step = [[row[s] for row in kept if len(row) > s] for s in range(longest)]
    means = tuple(sum(column) / len(column) for column in by_step)
    ours, full, loss, plain = sums.tolist()
    return HeldOut(ours / full, loss / len(examples), plain / len(examples), means)


def calibrate(
    loaded: Loaded,
    predictor: RatePredictor,
    examples: Sequence[Example],
    plan: Plan,
    rounds: int = 10,
) -> float:
    """Shifts the predictor's bias towards or away from high rates until its likeliest rates cost the budget.

    Training meets the budget on average over sampled rates; inference takes the likeliest, which may cost more or less.
    The shift is proportional to the rate, so that the order of situations stays as learned. Bisection over `rounds`.

    Returns:
        The ratio then met on `examples`.
    """
    rates = torch.tensor(predictor.rates, device=loaded.model.device)
    base = predictor.linear.bias.detach().clone()
    low = -30.0
    high = 30.0
    ratio = math.nan
    best = (math.inf, base)
    for _ in range(rounds):
        middle = (low + high) / 2
        predictor.linear.bias.data.copy_(base + middle * rates)
        ratio = ratio_of(loaded, predictor, examples, plan)
        if abs(ratio - plan.budget) < best[0]:
            best = (abs(ratio - plan.budget), predictor.linear.bias.detach().clone())
        low, high = (middle, high) if ratio > plan.budget else (low, middle)
    predictor.linear.bias.data.copy_(best[1])
    return ratio_of(loaded, predictor, examples, plan)


def ratio_of(
    loaded: Loaded, predictor: RatePredictor, examples: Sequence[Example], plan: Plan
) -> float:
    """`HeldOut.ratio` alone, without running what would only tell the loss."""
    sums = torch.zeros(2, dtype=torch.float64)
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
        sums += torch.tensor(_spent(loaded.model, made, kept, plan), dtype=torch.float64)
    return float(sums[0] / sums[1])


def _spent(
    model: Any, made: tuple[Batch, Tensor, Tensor], kept: Tensor, plan: Plan
) -> tuple[float, float]:
    """FLOPs with these counts, and unpruned."""
    batch, text, total = made
    everything = total[:, None].expand_as(kept).to(kept)
    ours, full = (
        flops(shapes(model), plan.layer, text, total, count, batch.answered)
        for count in (kept, everything)
    )
    return float(ours.double().sum()), float(full.double().sum())
