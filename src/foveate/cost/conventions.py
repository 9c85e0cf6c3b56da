"""FLOPs as papers count them, to set our figures beside theirs.

They count a multiply-accumulate as one, only the decoder, and multi-head attention; ``C(n) = 4 n
d^2 + 2 n^2 d + k n d m`` per layer and n tokens, where k is 2 in FastV (2403.06764, Section 4.2)
and 3, the matrices of a gated MLP, in PyramidDrop (2410.17247, Section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence

MLP = {"fastv": 2, "pyramiddrop": 3}


def layer(tokens: float, hidden: int, inner: int, convention: str = "fastv") -> float:
    """C(n) of one layer.

    Args:
        tokens: n.
        hidden: d.
        inner: m, the MLP's width.
        convention: of `MLP`.
    """
    return (
        4 * tokens * hidden**2 + 2 * tokens**2 * hidden + MLP[convention] * tokens * hidden * inner
    )


def prefill(
    kept: Sequence[float], text: int, hidden: int, inner: int, convention: str = "fastv"
) -> float:
    """The sum over layers, of which layer l sees `kept[l]` visual tokens and `text` others."""
    return sum(layer(text + k, hidden, inner, convention) for k in kept)
