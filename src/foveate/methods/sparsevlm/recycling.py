"""The best of the dropped, clustered and merged into the places of their clusters' centres
(SparseVLM, 2410.04417).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...core.contract import Merge, Needs, Score
from ...core.view import View
from .raters import RATERS, TextRaters

GROUP = 10  # recycled tokens to a cluster


@dataclass(frozen=True)
class Recycled(Score):
    """The best-rated first, then centres of clusters of the best-rated among the rest, within what
    the schedule wants.

    Of m dropped tokens `share` m + 1 are recycled, in a tenth as many clusters and one. A sample
    with visual tokens of earlier turns, whose states are gone, recycles nothing.

    Attributes:
        share: of the dropped, those that are recycled.
        base: rates the tokens.
    """

    share: float = 0.3
    base: TextRaters = RATERS
    own = Needs(counts=True)

    def recycled(self, dropped: int) -> int:
        """How many of so many dropped tokens are recycled."""
        return min(dropped, int(self.share * dropped + 1e-9) + 1)

    def clusters(self, dropped: int) -> int:
        """How many clusters they make."""
        return self.recycled(dropped) // GROUP + 1 if dropped else 0

    def __call__(self, view: View, counts: Int[Tensor, B]) -> Float[Tensor, "B N"]:
        """Scores >= 0: 2 and more for the best-rated, 1 and more for centres."""
        return self._found(view, counts)[0]

    def owners(self, view: View, counts: Int[Tensor, B]) -> Int[Tensor, "B N"]:
        """For each recycled token the centre of its cluster; for every other token itself."""
        return self._found(view, counts)[1]

    def _found(
        self, view: View, counts: Int[Tensor, B]
    ) -> tuple[Float[Tensor, "B N"], Int[Tensor, "B N"]]:
        """Scores and owners, found once for the score and the merge of a decision."""
        found: tuple[Tensor, Tensor] = view.once(
            (self, *counts.tolist()), lambda: self._find(view, counts)
        )
        return found

    def _find(
        self, view: View, counts: Int[Tensor, B]
    ) -> tuple[Float[Tensor, "B N"], Int[Tensor, "B N"]]:
        """Sample by sample: how many of the best stay as they are, which of the rest are recycled,
        and into what.
        """
        score = self.base(view, counts)
        owner = torch.arange(score.shape[1], device=score.device).repeat(len(score), 1)
        here = view.place() >= 0
        states = view.states(partial=True).float()
        for sample, (alive, want) in enumerate(
            zip(view.alive.tolist(), counts.tolist(), strict=True)
        ):
            if want >= alive or not bool((here | ~view.mask)[sample].all()):
                continue
            # The more of the best stay, the fewer are recycled: the most that leave room for the
            # rest's clusters.
            best = next((k for k in range(want, -1, -1) if k + self.clusters(alive - k) <= want), 0)
            order = (
                score[sample]
                .masked_fill(~view.mask[sample], -1.0)
                .argsort(descending=True, stable=True)
            )
            # The next best are recycled: clustered by state, each cluster in the place of its
            # centre.
            members = order[best : best + self.recycled(alive - best)]
            centres, own = density_peaks(states[sample, members], min(want - best, len(members)))
            owner[sample, members] = members[centres][own]
            score[sample, order[:best]] += 2.0
            score[sample, members[centres]] += 1.0
        return score, owner


@dataclass(frozen=True)
class Recycling(Merge):
    """Merges what `score` recycles: every centre becomes the mean (or the sum) of its cluster."""

    score: Recycled
    summed: bool = False

    @property
    def follows(self) -> Score:
        """The clusters are those that the score has found."""
        return self.score

    def __call__(
        self, view: View, keep: Bool[Tensor, "B N"], counts: Int[Tensor, B]
    ) -> Float[Tensor, "B N D"]:
        """New states; what is not kept is of no account."""
        states = view.states(partial=True)
        owner = self.score.owners(view, counts)
        index = owner[..., None].expand(
            states.shape
        )  # a token that is not recycled owns itself, and stays as it is
        sums = torch.zeros_like(states, dtype=torch.float32).scatter_add(1, index, states.float())
        if self.summed:
            return sums
        size = torch.zeros_like(sums[..., 0]).scatter_add(1, owner, view.mask.float())
        return sums / size.clamp(min=1)[..., None]

    clusters = True

    def owners(
        self, view: View, keep: Bool[Tensor, "B N"], counts: Int[Tensor, B]
    ) -> Int[Tensor, "B N"]:
        """The centres; what is dropped and not recycled names itself, and is lost."""
        return self.score.owners(view, counts)


def density_peaks(
    points: Float[Tensor, "R D"], count: int
) -> tuple[Int[Tensor, K], Int[Tensor, R]]:
    """The `count` points that are dense and far from anything denser, and the nearest of them to
    each point (DPC-KNN).

    Density is exp of minus the mean squared distance to the `count` nearest points (itself among
    them), in units of the root of the dimension; of equal densities the earlier point's is the
    higher. All is done with logarithms, since densities of large states are 0 in any format.

    Returns:
        The centres, best first, and for each point which of them (counted from 0) is its own.
    """
    distance = (
        torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
        / points.shape[1] ** 0.5
    )
    # The logarithm of the density; then how far the nearest denser point is. The densest has the
    # widest distance.
    density = -distance.topk(count, dim=1, largest=False).values.square().mean(1)
    number = torch.arange(len(points), device=points.device)
    denser = (density[None] > density[:, None]) | (
        (density[None] == density[:, None]) & (number < number[:, None])
    )
    apart = torch.where(denser, distance, distance.max()).amin(1)
    centres = (density + apart.log()).argsort(descending=True, stable=True)[:count]
    owner = distance[:, centres].argmin(1)
    # Points that coincide with a centre may be nearer to another by rounding: a centre is its own.
    return centres, owner.scatter(0, centres, number[:count])
