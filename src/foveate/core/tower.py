"""What the vision tower made of the visual tokens; what scores before the decoder may look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor

What = Literal["attention", "keys", "values", "states", "known"]
Layer = int | float | None
"""A layer of the tower: None is the one whose output the model reads; -1 the one before it, and so
on; a whole number from 0 counts from the tower's first layer; a fraction is one of the tower's
depth.
"""


@dataclass(frozen=True)
class Tower:
    """Read off lazily, in float32, over the alive visual tokens; zeros at fills and for tokens
    without a patch.

    A score asks for it beforehand by `tower` of its `Needs`, the layers it will look at; where none
    asks, no hook is put on and nothing is kept. Where the model merges patches into a token, the
    token has their mean.

    Attributes:
        look: computes; given by the engine.
        visual: columns of the tokens.
    """

    look: Callable[[What, Layer, Tensor], Tensor]
    visual: Int[Tensor, "B N"]

    def attention(self, layer: Layer = None) -> Float[Tensor, "B N H"]:
        """Attention that each token's patches receive: from the [CLS] row, or the mean over rows
        where there is none.

        In layers that attend within windows, a patch receives from its own window alone; the mean
        is over the rows of the largest window, so that windows compare.
        """
        return self.look("attention", layer, self.visual)

    def keys(self, layer: Layer = None) -> Float[Tensor, "B N H E"]:
        """Keys of the layer's attention, rotated where the tower rotates."""
        return self.look("keys", layer, self.visual)

    def values(self, layer: Layer = None) -> Float[Tensor, "B N H E"]:
        """Values of the layer's attention."""
        return self.look("values", layer, self.visual)

    def states(self, layer: Layer = None) -> Float[Tensor, "B N D"]:
        """Output of the layer."""
        return self.look("states", layer, self.visual)

    def known(self) -> Bool[Tensor, "B N"]:
        """Which tokens come from patches; a newline between rows of tiles, or a [CLS] among the
        tokens, does not.
        """
        return self.look("known", None, self.visual).bool()
