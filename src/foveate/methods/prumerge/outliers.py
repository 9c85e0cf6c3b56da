"""Tokens that stand out by the vision tower's attention (LLaVA-PruMerge), and what the others
become.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...core.contract import Needs
from ...core.pictures import Count, Into, Mix, Picture, Rank, nearest

Merging = Literal["nearest", "neighbours"]
NEIGHBOURS = 32  # of each kept token, in the authors' code


@dataclass(frozen=True)
class Outliers(Count):
    """The tokens whose attention lies above the upper fence, Q3 + 1.5 (Q3 - Q1); with `spaced`,
    evenly spaced ones too.

    As a count, their number.
    """

    spaced: bool

    own = Needs(tower=(None,))

    def chosen(self, picture: Picture) -> Bool[Tensor, n]:
        """Which they are."""
        attention = picture.attention()
        low = attention.quantile(0.25)
        high = attention.quantile(0.75)
        out = attention > high + 1.5 * (high - low)
        out[attention.argmax()] = True
        if self.spaced:
            out[:: max(2, len(picture) // int(out.sum()) // 3)] = True
        return out

    def __call__(self, picture: Picture) -> int:
        """How many."""
        return int(self.chosen(picture).sum())


@dataclass(frozen=True)
class OutliersFirst(Rank):
    """The rank: outliers, then the others by attention."""

    outliers: Outliers

    def __call__(self, picture: Picture, count: int) -> Float[Tensor, n]:
        """Scores >= 0."""
        return picture.attention() + self.outliers.chosen(picture).float() * 2.0


@dataclass(frozen=True)
class IntoOutliers(Into):
    """Each dropped token goes to the kept one with the nearest key; a cluster's mean is weighted by
    attention.
    """

    own = Needs(tower=(None,))

    def find(
        self, picture: Picture, stay: Bool[Tensor, n], counts: Int[Tensor, B]
    ) -> Int[Tensor, n]:
        """The kept token whose key is most like each one's."""
        keys = picture.keys()
        return nearest(picture.cosines(keys, keys), stay)

    def share(self, picture: Picture) -> Float[Tensor, n]:
        """The tower's attention."""
        return _attention(picture)


@dataclass(frozen=True)
class WithNeighbours(Mix):
    """To each kept token its nearest are added, weighted by attention; they may be kept themselves."""

    own = Needs(tower=(None,))

    def __call__(
        self, picture: Picture, stay: Bool[Tensor, n], counts: Int[Tensor, B]
    ) -> Float[Tensor, "n n"]:
        """Weights of the merge."""
        keys = picture.keys()
        similar = picture.cosines(keys, keys)
        order = similar.fill_diagonal_(-torch.inf).argsort(dim=1, descending=True, stable=True)
        near = order[:, : min(NEIGHBOURS, len(picture) - 1)]
        itself = torch.eye(len(picture), device=similar.device, dtype=torch.float32)
        return itself.scatter(1, near, _attention(picture)[near])


def _attention(picture: Picture) -> Float[Tensor, n]:
    """What the tower paid to each token, above 0 so that a cluster has a mean."""
    return picture.attention().clamp(min=1e-12)


MERGES: dict[str, Mix] = {"nearest": IntoOutliers(), "neighbours": WithNeighbours()}
