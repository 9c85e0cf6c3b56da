"""The budget's FLOPs: decoder layers over prompt and answer, as a ratio, differentiable in the keep counts."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ....cost.flops import Shapes


def flops_ratio(
    shape: Shapes,
    layer: int,
    text: Int[Tensor, B],
    total: Int[Tensor, B],
    kept: Float[Tensor, "B S"],
    answered: Bool[Tensor, "B S"],
) -> Float[Tensor, ""]:
    """FLOPs of prefill and decode, all samples together, over those of the unpruned model (`measure.cost`'s formula).

    Args:
        shape: of the model.
        layer: the prune layer.
        text: prompt tokens that are not visual.
        total: visual tokens of each sample.
        kept: visual tokens from the prune layer on, step by step.
        answered: which steps there are; step 0 is the prefill, step t >= 1 runs the answer's word t.
    """
    ours = flops(shape, layer, text, total, kept, answered)
    return (
        ours.sum()
        / flops(shape, layer, text, total, total[:, None].expand_as(kept).to(kept), answered).sum()
    )


def least_ratio(
    shape: Shapes,
    layer: int,
    text: Int[Tensor, B],
    total: Int[Tensor, B],
    answered: Bool[Tensor, "B S"],
    rate: float,
) -> float:
    """The ratio of dropping `rate` of the visual tokens at once: no predictor can go below it."""
    least = (total * (1 - rate)).floor()[:, None].expand(answered.shape).float()
    return float(flops_ratio(shape, layer, text, total, least, answered))


def flops(
    shape: Shapes,
    layer: int,
    text: Int[Tensor, B],
    total: Int[Tensor, B],
    kept: Float[Tensor, "B S"],
    answered: Bool[Tensor, "B S"],
) -> Float[Tensor, B]:
    """FLOPs of prefill and decode of each sample; arguments as of `flops_ratio`."""
    below = shape.layers[:layer]
    above = shape.layers[layer:]
    words = text.to(kept)
    whole = total.to(kept)
    steps = torch.arange(1, kept.shape[1], device=kept.device)
    there = answered[:, 1:].to(kept)
    spent = kept.new_zeros(len(kept))
    for layers, first, later in (
        (below, whole, whole[:, None].expand(-1, len(steps))),
        (above, kept[:, 0], kept[:, 1:]),
    ):
        for one in layers:
            spent = spent + one.flops(words + first)
            before = words[:, None] + later + steps - 1
            spent = spent + (one.flops(torch.ones_like(before), before) * there).sum(1)
    return spent
