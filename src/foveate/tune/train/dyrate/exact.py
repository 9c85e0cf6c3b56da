"""Learning from a table of every answer at every rate.

It follows the expected loss itself, without draws or soft masks.

Shapes: E answers, H heads, K rates; 4 are the types of tokens that shares are of.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ....core.predictor import RatePredictor
from .adapting import of_choice
from .plan import Plan
from .table import Table

_STEPS = 2000
# Times the squared weights, over the number of answers: few answers would be learned by heart.
_SHRINK = 0.09
# Of the budget. With much more, all prompts settle on one rate before they are told apart.
_PRICE = 10.0
# Shares that differ by less count as differing by this.
_LEAST_SPREAD = 0.02


@torch.enable_grad()
def fit(table: Table, plan: Plan) -> RatePredictor:
    """The linear classifier that has the least expected loss over the table, at the plan's budget.

    Not in the paper, which learns through soft masks (`gradients.through_masks`). Where the rate is
    chosen once, at the prefill, an answer has only K outcomes. All of them are run, so the gradient
    of ``sum_k p_k (CE_k + kl KL_k) + 10 (F/F_full - budget)^2`` has no noise and no bias, and goes
    through no layer of the model. Shares are brought to mean 0 and spread 1 first, since prompts
    differ by hundredths of a head's attention; the result is folded back into the paper's form.
    AdamW's rate is `plan.lr`, to a tenth of it by a cosine.

    Args:
        table: of training answers.
        plan: budget, rates, `response`, `kl`, `lr`.
    """
    heads = table.shares.shape[1]
    learner = RatePredictor(heads, plan.rates, plan.response)
    mean, spread = _standard(table.shares)
    seen = (table.shares - mean) / spread  # (E H 4)
    cost = table.loss + plan.kl * table.divergence  # (E K)
    spent = table.flops / table.full.mean()  # (E K), whose mean over answers is F/F_full
    optimizer = torch.optim.AdamW(learner.parameters(), lr=plan.lr, weight_decay=0.0)
    for step in range(_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = plan.lr_at(step / _STEPS)
        chances = learner(seen).softmax(-1)  # (E K)
        expected = (chances * cost).sum(1).mean()
        ratio = (chances * spent).sum(1).mean()
        shrink = _SHRINK / len(seen) * learner.linear.weight.square().sum()
        optimizer.zero_grad()
        (expected + _PRICE * (ratio - plan.budget) ** 2 + shrink).backward()
        optimizer.step()
    made = _folded(learner, mean, spread)
    _meet(made, table, plan.budget)
    return made


@torch.no_grad()
def _meet(predictor: RatePredictor, table: Table, budget: float) -> None:
    """Shifts the bias until the likeliest rates cost the budget on the table.

    The shift is in proportion to the rate, so that a larger one favours higher rates.
    """
    logits = predictor(table.shares)  # (E K)
    rates = torch.tensor(predictor.rates, dtype=torch.float32, device="cpu")
    low = -60.0
    high = 60.0
    for _ in range(50):
        middle = (low + high) / 2
        chosen = (logits + middle * rates).argmax(1)
        if of_choice(table, chosen).ratio > budget:
            low = middle
        else:
            high = middle
    predictor.linear.bias.add_(high * rates)


def _standard(shares: Float[Tensor, "E H 4"]) -> tuple[Float[Tensor, "H 4"], Float[Tensor, "H 4"]]:
    """Mean and spread over the answers."""
    return shares.mean(0), shares.std(0, correction=0).clamp(min=_LEAST_SPREAD)


@torch.no_grad()
def _folded(
    learner: RatePredictor, mean: Float[Tensor, "H 4"], spread: Float[Tensor, "H 4"]
) -> RatePredictor:
    """The same classifier of shares as they are: W (v - mean) / spread + b, as W' v + b'."""
    made = RatePredictor(learner.heads, learner.rates, learner.response)
    types = 4 if learner.response else 3
    middle = mean[:, :types].flatten()
    scale = spread[:, :types].flatten()
    made.linear.weight.copy_(learner.linear.weight / scale)
    made.linear.bias.copy_(learner.linear.bias - made.linear.weight @ middle)
    return made
