"""What becomes of the dropped, by their places alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .contract import Merge
from .view import View


@dataclass(frozen=True)
class IntoNearest(Merge):
    """Each dropped token is averaged into the kept token that lies nearest in its image.

    Where its image keeps none, it is let go. Nearness is distance on the image's grid, or of columns where there is
    none. Tokens of earlier turns, whose states are gone, are dropped without merging.
    """

    def __call__(
        self, view: View, keep: Bool[Tensor, "B N"], counts: Int[Tensor, B]
    ) -> Float[Tensor, "B N D"]:
        """Means of the kept and of what falls to them; entries that are not kept are zeros."""
        states = view.states(partial=True)
        here = view.place() >= 0  # its hidden state runs now
        kept = keep & here
        row, column = _coordinates(view)
        far = (row[:, :, None] - row[:, None]) ** 2 + (
            column[:, :, None] - column[:, None]
        ) ** 2  # (B N N), squared
        image = view.tokens.image.gather(1, view.visual.clamp(min=0))
        near = kept[:, None] & (
            image[:, :, None] == image[:, None]
        )  # (B N N): [b, i, j] if i may go into j
        target = far.masked_fill(~near, 2**40).argmin(2)
        target = torch.where(kept, torch.arange(target.shape[1], device=target.device), target)
        # One matrix of ones and zeros, a row for each token with a one at its target: its transpose sums what falls
        # to each target, and its column sums are how many tokens that is.
        weight = torch.nn.functional.one_hot(target, target.shape[1]).to(states.dtype)
        weight = weight * (here & near.any(2))[..., None]
        view.spend(2.0 * weight.numel() * states.shape[-1])
        sums = weight.transpose(1, 2) @ states
        return sums / weight.sum(1)[..., None].clamp(min=1)


def _coordinates(view: View) -> tuple[Tensor, Tensor]:
    """Place of each alive visual token on its image's grid; images are far apart from one another."""
    image = view.tokens.image.gather(1, view.visual.clamp(min=0))
    number = view.tokens.image.ge(0).long().cumsum(1).gather(1, view.visual.clamp(min=0)) - 1
    if view.tokens.grid is None:
        return image * 2**16, number
    height, width = view.tokens.grid
    inside = number % (height * width)
    return image * 2**16 + inside // width, inside % width
