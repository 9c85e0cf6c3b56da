"""Downsample: tokens spread evenly over the image."""

from __future__ import annotations

from ..core.knobs import checked
from ..core.method import Method
from ..core.schedules import Cut, spelled
from ..core.scores import Even
from ..core.weighing import Cell, Mean


@checked
def downsample(layer: int = 0, keep: float | int = 0.25, pool: bool = False) -> Method:
    """Before layer `layer`, keep an evenly spread subset of each image's tokens.

    Paper: none; a mandatory control, since it often beats published methods (VTC-Bench, arXiv
    2510.07143).

    Where: before the language model; layer 0.

    Deviations: tokens are thinned out after the tower, in the order of Bayer's dither matrix (a
    quarter is every second row and column); VTC-Bench shrinks the picture itself. Where a family's
    tokens form no grid, they are thinned out along the sequence.

    Args:
        layer: the first layer that runs with fewer tokens.
        keep: visual tokens kept, a fraction (float) or a number (int).
        pool: average each dropped token into the nearest kept one, as pooling does, in place of
            forgetting it.

    Raises:
        ValueError: a negative layer, or `keep` out of range.
    """
    name = f"downsample:layer={layer},keep={spelled(keep)}" + (",pool=true" if pool else "")
    merge = Mean(Cell(), cutoff=-1.0) if pool else None
    return Method(Even(), Cut(layer, keep), merge, within="image", name=name)
