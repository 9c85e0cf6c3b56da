"""The budget's FLOPs: decoder layers over prompt and answer, as a ratio.

It is differentiable in the keep counts. Shapes: B samples, S steps.
"""

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
    """FLOPs of prefill and decode, all samples together, over those of the unpruned model.

    The formula is that of `cost.flops`.

    Args:
        shape: of the model.
        layer: the prune layer.
        text: prompt tokens that are not visual.
        total: visual tokens of each sample.
        kept: visual tokens from the prune layer on, step by step.
        answered: which steps there are; step 0 is the prefill, step t >= 1 runs the answer's
            word t.
    """
    everything = total[:, None].expand_as(kept).to(kept)  # (B S)
    ours = flops(shape, layer, text, total, kept, answered)
    full = flops(shape, layer, text, total, everything, answered)
    return ours.sum() / full.sum()


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
    words = text.to(kept)
    whole = total.to(kept)
    steps = torch.arange(1, kept.shape[1], device=kept.device)  # the decode steps
    there = answered[:, 1:].to(kept)  # (B S-1): 1 for a decode step that is run, else 0
    # Visual tokens in the prefill (B) and at each decode step (B S-1): below the prune layer all,
    # from it on what was kept.
    below = (shape.layers[:layer], whole, whole[:, None].expand(-1, len(steps)))
    above = (shape.layers[layer:], kept[:, 0], kept[:, 1:])
    spent = kept.new_zeros(len(kept))
    for layers, first, later in (below, above):
        for one in layers:
            spent = spent + one.flops(words + first)
            # Step t runs one row, which sees the text, the visual tokens left and t - 1 words.
            before = words[:, None] + later + steps - 1
            spent = spent + (one.flops(torch.ones_like(before), before) * there).sum(1)
    return spent
