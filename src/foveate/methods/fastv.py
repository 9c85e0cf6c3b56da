"""FastV: one cut, by what the last prompt token looks at."""

from __future__ import annotations

from typing import Literal

from ..core.method import Method
from ..core.schedules import Cut
from ..core.scores import LastQuery


def fastv(
    layer: int = 2, keep: float | int = 0.5, rate: float | None = None, within: Literal["sample", "image"] = "sample"
) -> Method:
    """Before layer `layer`, keep the visual tokens that the last prompt token attends to most.

    Paper: "An Image is Worth 1/2 Tokens After Layer 2", Chen et al., arXiv 2403.06764, Section 4 (K, R).

    Deviations: the score is the last prompt token's attention in layer K-1, mean over heads, as in the authors'
    code (the text says attention received from all tokens). Original positions are kept. With a KV cache the drop
    holds for the whole answer; without one, every step prunes anew by its newest token, as the authors' code does.

    Args:
        layer: the paper's K, the first layer that runs with fewer tokens; 1 or more.
        keep: visual tokens kept, a fraction (float) or a number (int).
        rate: the paper's R, the fraction removed; instead of `keep`.
        within: "image" gives every image of a sample its share.

    Raises:
        ValueError: layer < 1, or `keep` or `rate` out of range.
    """
    if layer < 1:
        raise ValueError(f"layer={layer}; expected 1 or more: the score is the attention of the layer before")
    if rate is not None:
        if not 0 <= rate <= 1:
            raise ValueError(f"rate={rate}; expected the fraction removed, in [0, 1]")
        keep = 1.0 - rate
    return Method(LastQuery(), Cut(layer, keep), within=within, name=f"fastv:layer={layer},keep={keep:g}")
