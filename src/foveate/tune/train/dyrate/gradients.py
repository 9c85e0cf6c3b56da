"""How a training step learns which rates are good: through soft masks, the paper's way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ....core.predictor import RatePredictor
from ....cost.flops import Shapes
from .flops import flops_ratio
from .plan import Plan
from .rollout import Batch, answer_losses, over_words, roll_out, unpruned_logits


@dataclass(frozen=True)
class MaskedGradients:
    """What a step learns.

    Attributes:
        gradients: of the loss, one for each of the predictor's parameters.
        figures: of the progress line.
    """

    gradients: Sequence[Tensor]
    figures: dict[str, float]


def through_masks(
    model: Any,
    predictor: RatePredictor,
    made: tuple[Batch, Tensor, Tensor],
    plan: Plan,
    shape: Shapes,
    uniform: Float[Tensor, "B K"],
    tau: float,
) -> MaskedGradients:
    """Gumbel-Softmax, straight-through: the paper's way.

    Gradients go back through the model to the weights of the key columns. Where the most attended
    key is a dropped one, the answer's loss is almost vertical in that key's weight, although a rate
    moves in steps: gradients a thousand times the others', which would drown the budget's. So the
    answer's are clipped by themselves. What a soft weight does is not what a rate does; `exact.fit`
    learns from rates themselves, where it can.

    Args:
        model: frozen.
        predictor: that learns.
        made: as `batch_of` makes it: the batch, text tokens, visual tokens.
        plan: the numbers.
        shape: of the model, for the budget.
        uniform: noise in [0, 1).
        tau: temperature.
    """
    batch, text, total = made
    choose = partial(_gumbel, uniform=uniform, tau=tau)
    found = roll_out(
        model, predictor, plan.score, plan.layer, batch, choose, plan.decode, plan.weighting
    )
    ratio = flops_ratio(shape, plan.layer, text, total, found.kept, batch.answered)
    answer = answer_losses(found.logits, batch).mean()
    quality = answer
    if plan.kl:
        plain = unpruned_logits(model, batch).float().log_softmax(-1)  # (B S V)
        pruned = found.logits.float().log_softmax(-1)
        quality = answer + plan.kl * divergences(plain, pruned, batch).mean()
    price = plan.weight * (ratio - plan.budget) ** 2
    shares = found.kept.detach() / total[:, None].clamp(min=1)  # (B S)
    share = shares[batch.answered].mean().item()  # over the steps that there are
    figures = {
        "loss": (quality + price).item(),
        "answer": answer.item(),
        "flops": ratio.item(),
        "kept": share,
    }
    return MaskedGradients(_gradients(predictor, plan, quality, price), figures)


def _gumbel(logits: Tensor, uniform: Tensor, tau: float) -> Tensor:
    """A one-hot sample with the gradient of its softmax (Gumbel-Softmax, straight-through).

    An answer's steps share their noise. Each step's sample is as Gumbel-Softmax has it, and steps
    with like logits take like rates; with noise of its own at every step, sets that only shrink
    would end with the highest of many rates.
    """
    soft = ((logits + _gumbel_noise(uniform, logits)) / tau).softmax(-1)  # (B K)
    hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft)
    # The value is `hard`, the gradient that of `soft`.
    return hard + soft - soft.detach()


def _gumbel_noise(uniform: Tensor, like: Tensor) -> Tensor:
    """Gumbel noise -log(-log u), of the type of `like`."""
    inside = uniform.clamp(1e-9, 1 - 1e-9).to(like)  # log(0) is no number
    return -(-inside.log()).log()


def _gradients(
    predictor: RatePredictor, plan: Plan, quality: Tensor, price: Tensor
) -> list[Tensor]:
    """Gradients of quality, clipped to a norm of `plan.clip`, plus those of the budget's price."""
    parameters = list(predictor.parameters())
    of_quality = torch.autograd.grad(quality, parameters, retain_graph=True)
    of_price = torch.autograd.grad(price, parameters)
    norm = math.sqrt(sum(float(g.square().sum()) for g in of_quality))
    clip = min(1.0, plan.clip / max(norm, 1e-12))
    return [g * clip + h for g, h in zip(of_quality, of_price, strict=True)]


def divergences(
    plain: Float[Tensor, "B S V"], pruned: Float[Tensor, "B S V"], batch: Batch
) -> Float[Tensor, B]:
    """KL(unpruned || pruned) of each answer, mean over its words, in nats.

    Args:
        plain: log-probabilities of the unpruned model.
        pruned: log-probabilities of the pruned one.
        batch: the answers.
    """
    by_word = F.kl_div(pruned, plain, log_target=True, reduction="none").sum(-1)  # (B S)
    return over_words(by_word, batch)
