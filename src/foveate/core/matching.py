"""Bipartite soft matching (ToMe, Bolya et al., arXiv 2210.09461): what is alike merges, in rounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .contract import Needs, Part
from .pictures import Count, Into, Picture, Rank


@dataclass(frozen=True)
class Matching(Part):
    """Every second token is matched with the most similar of the others, by key; the best pairs of
    a round merge.

    A merged token has the mean key of its members and the place of the token that took them in.

    Attributes:
        least: how many tokens are to be left.
        rounds: over which merging is spread; 0 merges in every round all that it may.
        threshold: pairs less alike than this never merge.
    """

    least: Count
    rounds: int = 0
    threshold: float = -torch.inf

    own = Needs(tower=(None,))  # for its keys

    def owners(self, picture: Picture) -> Int[Tensor, n]:
        """The token that has taken in each token, itself where it is left."""
        found: Tensor = picture.once(self, lambda: self._owners(picture))
        return found

    def _owners(self, picture: Picture) -> Int[Tensor, n]:
        """As `owners`, found anew: round by round, until few enough are left or no pair is alike
        enough.
        """
        least = max(1, self.least(picture))
        some = (
            len(picture) if not self.rounds else max(1, -(-(len(picture) - least) // self.rounds))
        )
        sums = picture.keys().clone()  # of the keys of all that a token has taken in
        owner = torch.arange(len(picture), device=picture.places.device)
        left = owner  # the tokens that are still there, in order
        while len(left) > least:
            even = left[::2]
            odd = left[1::2]
            # Each even token's best partner among the odd ones. The mean key has the sum's
            # direction, and the cosine does not see lengths, so sums will do.
            alike, to = picture.cosines(sums[even], sums[odd]).max(1)
            most = min(some, len(left) - least, int((alike >= self.threshold).sum()))
            best = alike.argsort(descending=True, stable=True)[:most]
            if not len(best):
                break
            source, target = even[best], odd[to[best]]  # several sources may have one target
            sums = sums.index_add(0, target, sums[source])
            # One step of a path: sources go to their targets, all others stay. What a source owned
            # goes along.
            step = torch.arange(len(picture), device=owner.device).scatter(0, source, target)
            owner = step[owner]
            left = left[~torch.isin(left, source)]
        return owner


@dataclass(frozen=True)
class Left(Count):
    """The count: how many tokens a matching leaves."""

    matching: Matching

    def __call__(self, picture: Picture) -> int:
        """Tokens to keep of the image."""
        return int((self.matching.owners(picture).bincount() > 0).sum())


@dataclass(frozen=True)
class LeftFirst(Rank):
    """The rank: the tokens that a matching leaves, those first that have taken in most."""

    matching: Matching

    def __call__(self, picture: Picture, count: int) -> Float[Tensor, n]:
        """Scores >= 0."""
        return self.matching.owners(picture).bincount(minlength=len(picture)).float()


@dataclass(frozen=True)
class IntoOwners(Into):
    """The merge: a token becomes the mean of all that it has taken in."""

    matching: Matching

    def find(
        self, picture: Picture, stay: Bool[Tensor, n], counts: Int[Tensor, B]
    ) -> Int[Tensor, n]:
        """As the matching has it; what stays against it is its own."""
        owner = self.matching.owners(picture)
        return torch.where(stay, torch.arange(len(owner), device=owner.device), owner)
