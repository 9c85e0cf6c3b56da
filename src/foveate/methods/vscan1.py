"""VScan's first stage: what the whole image shows, and what each part of it shows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.method import Method
from ..core.pictures import ByImage, EachImage, MixImage, Picture, Share, nearest, shared_out
from ..core.schedules import spelled


@dataclass(frozen=True)
class Scans:
    """Ranks: first the global scan, then the local one; see `vscan1`."""

    local: Share
    shallow: float
    windows: int

    @property
    def tower(self) -> tuple[float | None, ...]:
        """The layers of both scans."""
        return (None, self.shallow)

    def window(self, picture: Picture) -> Int[Tensor, n]:
        """The window of each token: a tile of the grid, or a run of the sequence where there is none."""
        if picture.view.tokens.grid is None:
            return picture.number * self.windows**2 // picture.started
        height, width = picture.view.tokens.grid
        row, column = picture.number // width, picture.number % width
        return row * self.windows // height * self.windows + column * self.windows // width

    def __call__(self, picture: Picture, count: int) -> Float[Tensor, n]:
        """Minus a token's place: the global scan, then the windows' best, their second best, ..."""
        wide, close = picture.attention(), picture.attention(self.shallow)
        order = wide.argsort(descending=True, stable=True)
        taken = torch.zeros(len(picture), dtype=torch.bool, device=wide.device)
        taken[order[: count - self.local.of(count)]] = True
        window = self.window(picture)
        same = (window[:, None] == window) & ~taken
        turn = (same & (close > close[:, None])).sum(1)  # how many of its window come before it
        turn[taken] = -1
        order = close.argsort(descending=True, stable=True)
        order = order[turn[order].argsort(stable=True)]
        return -torch.empty_like(close).scatter(0, order, torch.arange(len(picture), device=close.device).to(close))


@dataclass(frozen=True)
class IntoSimilar:
    """Each dropped token goes to the kept one whose features are most like its own; a cluster becomes its mean."""

    tower = (None,)

    def __call__(self, picture: Picture, stay: Bool[Tensor, n]) -> Float[Tensor, "n n"]:
        """Weights of the merge."""
        states = picture.of(picture.view.tower.states())
        into = nearest(picture.cosines(states, states), stay)
        return shared_out(into, torch.ones(len(picture), device=into.device))


def vscan1(
    layer: int = 0, keep: float | int = 0.25, local: float = 0.5, shallow: float = 0.25, windows: int = 4
) -> Method:
    """Before layer `layer`, keep the tokens that a deep layer of the tower and the windows of a shallow one attend to.

    Paper: "VScan: Rethinking Visual Token Reduction for Efficient Large Vision-Language Models", Zhang et al., arXiv
    2505.22654, Section 4.1: the first of two stages; compose with `vscan2` for the second.

    Deviations: what we could not read is settled so: the global scan chooses first, the local one among the rest, the
    best of each window, then the second best of each; windows are a fixed number per side. Dropped tokens are averaged
    into the kept one with the most similar features, after the projector and not before it.

    Args:
        layer: the first layer that runs with fewer tokens; 0 is before the language model, as in the paper.
        keep: visual tokens kept of each image, a fraction (float) or a number (int).
        local: share of the kept that the local scan chooses; half in the paper.
        shallow: layer of the local scan, as a fraction of the tower's depth; the paper has layer 6 of CLIP's 24.
        windows: per side of the image.

    Raises:
        ValueError: a negative layer, no window, or a share out of range.
    """
    if windows < 1 or not 0 <= shallow < 1:
        raise ValueError(f"windows={windows}, shallow={shallow}; expected 1 or more, and a fraction below 1")
    count, scans = Share(keep), Scans(Share(float(local)), float(shallow), windows)
    name = f"vscan1:layer={layer},keep={spelled(keep)},local={spelled(float(local))}"
    return Method(ByImage(scans, count), EachImage(count, layer), MixImage(IntoSimilar()), name=name)
