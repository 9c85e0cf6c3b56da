"""What deciding anew at every decode step costs beside the step itself, on paper."""

from __future__ import annotations

from dataclasses import dataclass

from .flops import Shapes


@dataclass(frozen=True)
class Control:
    """Of one decision of DyRate for one sample in a decode step, over the step's own.

    Attributes:
        flops: share of the step's FLOPs.
        bytes: share of the bytes that the step reads: weights once, and every layer's keys and
            values.
    """

    flops: float
    bytes: float


def control_step(
    shape: Shapes, *, layer: int, heads: int, rates: int, visual: float, kept: float, text: float
) -> Control:
    """The controller's share of a decode step at batch 1, where it is largest in bytes.

    A decision projects one query of the layer before (`q_proj` is read for it), takes its products
    with that layer's keys, sums them by token type and runs the predictor; rankings of the newest
    token use the same row. Ordering the tokens is not matrix work and not counted, nor is moving
    keys and values when tokens leave, which pays for itself within two steps (dev/LOG.md). The head
    is part of the step.

    Args:
        shape: of the model.
        layer: the decision is before it.
        heads: of its attention.
        rates: that the predictor chooses from.
        visual: tokens that layers below `layer` hold.
        kept: tokens that it and the layers above hold.
        text: all other tokens so far.
    """
    asked = shape.layers[max(0, layer - 1)]
    counts = [visual if index < layer else kept for index in range(len(shape.layers))]
    before = text + (visual if layer else kept)
    predictor = heads * 4 * rates
    flops = asked.ranking(1, before + 1) + 2 * heads * 4 * (before + 1) + 2 * predictor
    read = asked.hidden * asked.query + asked.key * before + predictor
    step = (
        sum(one.flops(1, text + held) for one, held in zip(shape.layers, counts, strict=True))
        + 2 * shape.head
    )
    weights = sum(one.read(1) for one in shape.layers) + shape.head
    cache = sum(one.cache(text + held) for one, held in zip(shape.layers, counts, strict=True))
    return Control(flops / step, read / (weights + cache))
