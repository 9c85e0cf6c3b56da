"""How a training step learns which rates are good: through soft masks (the paper's way), or from draws alone."""

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

from ...core.predictor import RatePredictor
from ...measure.cost import Shapes
from .flops import flops_ratio
from .plan import Plan
from .rollout import Batch, Rollout, answer_losses, over_words, roll_out, unpruned_logits


@dataclass(frozen=True)
class Estimate:
    """Gradients of the loss, one for each of the predictor's parameters, and the figures of the progress line."""

    gradients: Sequence[Tensor]
    figures: dict[str, float]


def through_masks(
    model: Any,
    predictor: RatePredictor,
    made: tuple[Batch, Tensor, Tensor],
    plan: Plan,
    shape: Shapes,
    uniform: Float[Tensor, "1 B K"],
    tau: float,
) -> Estimate:
    """Gumbel-Softmax, straight-through: backward through the model to the weights of the key columns (the paper).

    Where the most attended key is a dropped one, the answer's loss is almost vertical in that key's weight, although
    a rate moves in steps: gradients a thousand times the others', which would drown the budget's. So the answer's are
    clipped by themselves. What a soft weight does is not what a rate does: see `by_draws`.

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
    choose = partial(_gumbel, uniform=uniform[0], tau=tau)
    found = roll_out(model, predictor, plan.score, plan.layer, batch, choose, plan.decode)
    ratio = flops_ratio(shape, plan.layer, text, total, found.kept, batch.answered)
    answer = answer_losses(found.logits, batch).mean()
    quality = answer + plan.kl * _divergences(_plain(model, batch), found, batch).mean() if plan.kl else answer
    return _estimate(predictor, plan, quality, ratio, quality.item(), answer.item(), found.kept.detach(), made)


def by_draws(
    model: Any,
    predictor: RatePredictor,
    made: tuple[Batch, Tensor, Tensor],
    plan: Plan,
    shape: Shapes,
    uniform: Float[Tensor, "M B K"],
    tau: float,
) -> Estimate:
    """The score-function estimator with a leave-one-out baseline (Kool et al. 2019): unbiased, and forward passes only.

    Not in the paper. Of each answer, M rates are drawn; a rate whose loss is above that of the answer's other draws
    becomes less likely. Nothing runs backward through the model, so none of its activations are kept. The budget is
    that of the expected count of tokens, so it has no noise of sampling. One decision an answer can be learned so,
    hence `Plan` refuses it with `decode`.

    Args:
        model, predictor, made, plan, shape, tau: as of `through_masks`.
        uniform: noise in [0, 1), for M draws, at least 2.
    """
    batch, text, total = made
    plain = _plain(model, batch) if plan.kl else None
    losses, answers, drawn, kept = [], [], [], []
    for noise in uniform:
        draw = _Draw(noise, tau)
        found = roll_out(model, predictor, plan.score, plan.layer, batch, draw, decode=False)
        answers.append(answer_losses(found.logits, batch))
        losses.append(answers[-1] if plain is None else answers[-1] + plan.kl * _divergences(plain, found, batch))
        drawn.append(draw)
        kept.append(found.kept)
    loss = torch.stack(losses)
    others = (loss.sum(0) - loss) / (len(uniform) - 1)
    quality = ((loss - others) * torch.stack([draw.log_chance for draw in drawn])).mean()
    expected = (drawn[0].chances * predictor.keep(total)).sum(-1)[:, None].expand_as(batch.answered)
    ratio = flops_ratio(shape, plan.layer, text, total, expected, batch.answered)
    answer = torch.stack(answers).mean().item()
    return _estimate(predictor, plan, quality, ratio, loss.mean().item(), answer, torch.stack(kept).mean(0), made)


class _Draw:
    """Draws one rate of every answer, and remembers how likely it was."""

    def __init__(self, uniform: Tensor, tau: float) -> None:
        self.uniform, self.tau = uniform, tau

    def __call__(self, logits: Tensor) -> Tensor:
        chances = (logits / self.tau).log_softmax(-1)
        chosen = (chances.detach() + _gumbel_noise(self.uniform, logits)).argmax(-1)
        self.chances = chances.exp()
        self.log_chance = chances.gather(-1, chosen[:, None])[:, 0]
        return F.one_hot(chosen, logits.shape[-1]).to(logits)


def _gumbel(logits: Tensor, uniform: Tensor, tau: float) -> Tensor:
    """A one-hot sample with the gradient of its softmax (Gumbel-Softmax, straight-through).

    An answer's steps share their noise. Each step's sample is as Gumbel-Softmax has it, and steps with like logits take
    like rates; with noise of its own at every step, sets that only shrink would end with the highest of many rates.
    """
    soft = ((logits + _gumbel_noise(uniform, logits)) / tau).softmax(-1)
    hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft)
    return hard + soft - soft.detach()


def _gumbel_noise(uniform: Tensor, like: Tensor) -> Tensor:
    return -(-uniform.clamp(1e-9, 1 - 1e-9).to(like).log()).log()


def _estimate(
    predictor: RatePredictor,
    plan: Plan,
    quality: Tensor,
    ratio: Tensor,
    loss: float,
    answer: float,
    kept: Tensor,
    made: tuple[Batch, Tensor, Tensor],
) -> Estimate:
    """The gradients of quality, clipped, and of the budget's price; and the figures."""
    batch, _, total = made
    price = plan.weight * (ratio - plan.budget) ** 2
    parameters = list(predictor.parameters())
    of_quality = torch.autograd.grad(quality, parameters, retain_graph=True)
    of_price = torch.autograd.grad(price, parameters)
    norm = math.sqrt(sum(float(g.square().sum()) for g in of_quality))
    clip = min(1.0, plan.clip / max(norm, 1e-12))
    gradients = [g * clip + h for g, h in zip(of_quality, of_price, strict=True)]
    share = (kept / total[:, None].clamp(min=1))[batch.answered].mean().item()
    return Estimate(gradients, {"loss": loss + price.item(), "answer": answer, "flops": ratio.item(), "kept": share})


def _plain(model: Any, batch: Batch) -> Float[Tensor, "B S V"]:
    """Log-probabilities of the unpruned model."""
    return unpruned_logits(model, batch).float().log_softmax(-1)


def _divergences(plain: Float[Tensor, "B S V"], found: Rollout, batch: Batch) -> Float[Tensor, B]:
    """KL of each answer from the unpruned model, mean over its words, in nats."""
    pruned = found.logits.float().log_softmax(-1)
    return over_words(F.kl_div(pruned, plain, log_target=True, reduction="none").sum(-1), batch)
