"""VScan, first stage: what the whole image and its parts show."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.contract import Needs
from ..core.knobs import checked
from ..core.method import Method
from ..core.pictures import (
    ByImage,
    EachImage,
    Into,
    MixImage,
    Picture,
    Rank,
    Share,
    nearest,
)
from ..core.schedules import spelled


@dataclass(frozen=True)
class Scans(Rank):
    """Ranks: first the local scan, then the global one among the rest; see `vscan1`."""

    local: Share
    shallow: float
    windows: int

    @property
    def own(self) -> Needs:
        """The layers of both scans."""
        return Needs(tower=(None, self.shallow))

    def window(self, picture: Picture) -> Int[Tensor, n]:
        """The window of each token: a tile of the grid, or a run of the sequence where there is
        none.
        """
        if picture.view.tokens.grid is None:
            return picture.number * self.windows**2 // picture.started
        height, width = picture.view.tokens.grid
        row = picture.number // width
        column = picture.number % width
        return row * self.windows // height * self.windows + column * self.windows // width

    def __call__(self, picture: Picture, count: int) -> Float[Tensor, n]:
        """2 for the local scan, the windows' best, their second best, ...; for the rest the global
        one's attention.
        """
        wide = picture.attention()
        close = picture.attention(self.shallow)
        window = self.window(picture)
        turn = ((window[:, None] == window) & (close > close[:, None])).sum(
            1
        )  # how many of its window come before it
        order = close.argsort(descending=True, stable=True)
        local = order[turn[order].argsort(stable=True)][: self.local.of(count)]
        return wide.scatter(0, local, 2.0)


@dataclass(frozen=True)
class IntoSimilar(Into):
    """Each dropped token goes to the kept one most like itself; a cluster becomes its mean."""

    def find(
        self, picture: Picture, stay: Bool[Tensor, n], counts: Int[Tensor, B]
    ) -> Int[Tensor, n]:
        """The kept token most like each."""
        states = picture.states()
        return nearest(picture.cosines(states, states), stay)


@checked
def vscan1(
    layer: int = 0,
    keep: float | int = 0.25,
    local: float = 0.5,
    shallow: float = 0.25,
    windows: int = 4,
) -> Method:
    """Before layer `layer`, keep the tokens that a deep layer of the tower and the windows of a
    shallow one attend to.

    Paper: "VScan: Rethinking Visual Token Reduction for Efficient Large Vision-Language Models",
    Zhang et al., arXiv 2505.22654: the first of two stages; compose with `vscan2` for the second.

    Where: before the language model; layer 0.

    Deviations: read in the abstract and in the authors' code, as which the local scan chooses first
    and the global one among the rest, and windows are a fixed number per side (4 of 6 x 6 tokens).
    The code gives every window the same number and loses what does not divide; here the best of
    each window are taken, then the second best of each, until the count is met. The local scan
    reads the layer at a quarter of the depth, the code the sixth of CLIP's 24.

    Args:
        layer: the first layer that runs with fewer tokens; 0 is before the language model, as in
            the paper.
        keep: visual tokens kept of each image, a fraction (float) or a number (int).
        local: share of the kept that the local scan chooses; half in the paper.
        shallow: layer of the local scan, as a fraction of the tower's depth; the paper has layer 6
            of CLIP's 24.
        windows: per side of the image.

    Raises:
        ValueError: a negative layer, no window, or a share out of range.
    """
    if windows < 1 or not 0 <= shallow < 1:
        raise ValueError(
            f"windows={windows}, shallow={shallow}; expected 1 or more, and a fraction below 1"
        )
    count = Share(keep)
    scans = Scans(Share(float(local)), float(shallow), windows)
    name = f"vscan1:layer={layer},keep={spelled(keep)},local={spelled(float(local))}"
    return Method(
        ByImage(scans, count), EachImage(count, layer), MixImage(IntoSimilar()), name=name
    )
