"""PACT: clusters important tokens and weighs them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.contract import Needs
from ..core.knobs import checked
from ..core.method import Method
from ..core.pictures import ByImage, Count, EachImage, Into, MixImage, Picture, Rank, Share
from ..core.schedules import spelled
from ..core.weighing import NOBODY, Clusters

SPREAD = 2.0  # the distance by which density falls off, in the authors' code
REACH = 1.5  # cutoffs within which an unimportant token is taken back, in the authors' code


@dataclass(frozen=True)
class Clustering(Count):
    """Clusters of an image's important tokens; as a count, how many there are.

    Attributes:
        important: share of the image's tokens that are clustered; the others may only join.
        cutoff: distance, one minus the cosine of keys, within which every important token has a
            centre.
    """

    important: Share
    cutoff: float

    own = Needs(in_prompt=True)

    def __call__(self, picture: Picture) -> int:
        """How many centres."""
        owner = self.owners(picture)
        return int((owner == torch.arange(len(owner), device=owner.device)).sum())

    def owners(self, picture: Picture) -> Int[Tensor, n]:
        """The centre of each token's cluster, itself for a centre, `NOBODY` for what is too far
        from all centres.
        """
        found: Tensor = picture.once(self, lambda: self._owners(picture))
        return found

    def _owners(self, picture: Picture) -> Int[Tensor, n]:
        """As `owners`, found anew."""
        count = max(1, self.important(picture))
        order = importance(picture).argsort(descending=True, stable=True)
        chosen = order[:count].sort().values
        keys = picture.projected("keys", rotated=True).flatten(1)
        distance = (1.0 - picture.cosines(keys, keys[chosen])).clamp(min=0)  # (n m)
        centres = chosen[distance_bounded(distance[chosen], self.cutoff)]
        near = distance[:, torch.isin(chosen, centres)]  # (n centres), which are in order
        least, nearest = near.min(1)
        owner = torch.where(least <= REACH * self.cutoff, centres[nearest], NOBODY)
        return owner.scatter(0, centres, centres)


@dataclass(frozen=True)
class CentresFirst(Rank):
    """The rank: centres, those of the largest clusters first."""

    clustering: Clustering

    def __call__(self, picture: Picture, count: int) -> Float[Tensor, n]:
        """Scores >= 0."""
        owner = self.clustering.owners(picture)
        return owner[owner >= 0].bincount(minlength=len(owner)).float()


@dataclass(frozen=True)
class IntoCentres(Into):
    """The merge: a centre becomes the mean of its cluster."""

    clustering: Clustering

    def find(
        self, picture: Picture, stay: Bool[Tensor, n], counts: Int[Tensor, B]
    ) -> Int[Tensor, n]:
        """As clustered; what stays against it is its own."""
        owner = self.clustering.owners(picture)
        return torch.where(stay, torch.arange(len(owner), device=owner.device), owner)


def importance(picture: Picture) -> Float[Tensor, n]:
    """What the image's mean query would pay to each token, mean over heads, times the length of the
    token's state.

    Queries and keys are those of the layer about to run, without rotation, so that places play no
    part.
    """
    query = picture.projected("queries", rotated=False).mean(0)  # (H E)
    keys = picture.projected(
        "keys", rotated=False
    )  # (n K E); several heads of queries share one of keys
    keys = keys.repeat_interleave(query.shape[0] // keys.shape[1], 1)
    picture.view.spend(2.0 * keys.numel())
    paid = torch.einsum("he,nhe->hn", query, keys) / query.shape[1] ** 0.5
    return paid.softmax(1).mean(0) * picture.states().norm(dim=1)


def distance_bounded(distance: Float[Tensor, "m m"], cutoff: float) -> Bool[Tensor, m]:
    """Which points are centres: in order of density, each that no centre lies within `cutoff` of.

    Density is the sum over all points of exp(-(distance / 2)^2); of equal densities the earlier
    point's is higher. The authors' recursion finds the same centres, many at a time.
    """
    order = torch.exp(-((distance / SPREAD) ** 2)).sum(1).argsort(descending=True, stable=True)
    within = distance <= cutoff
    free = torch.ones(len(order), dtype=torch.bool, device=distance.device)
    centres = torch.zeros_like(free)
    for point in order.tolist():
        if free[point]:
            centres[point] = True
            free &= ~within[point]
    return centres


@checked
def pact(layer: int = 4, important: float = 0.55, cutoff: float = 0.21) -> Method:
    """Before layer `layer`, cluster the important visual tokens of each image by their keys, and
    weigh the clusters.

    Paper: "PACT: Pruning and Clustering-Based Token Reduction for Faster Visual Language Models",
    Dhouib et al., arXiv 2504.08966 (CVPR 2025). Important tokens are clustered so that each lies
    within `cutoff` of its centre; a cluster becomes its mean and weighs as many tokens as it holds;
    unimportant ones within 1.5 cutoffs of a centre are taken back into mean and weight, and others
    vanish. Clustering was checked against the authors' code; the importance is from notes on the
    paper.

    Where: inside the language model; layer 4.

    Deviations: each image of a sample is a problem of its own, and important tokens are a share of
    it. Keys are those of the layer about to run, rotated, as in the code; queries and keys of the
    importance are its, too, without rotation. Density's ties go to the earlier token. A centre
    keeps its position, as in the code's default. How many tokens stay depends on the image;
    `foveate.Trace.mean_kept` tells.

    Args:
        layer: the first layer that runs with fewer tokens; 4 in the paper.
        important: share of an image's tokens that are clustered.
        cutoff: of one minus the cosine of rotated keys; more merges more.

    Raises:
        ValueError: a negative layer, or a share or cutoff out of range.
    """
    if not 0 <= cutoff <= 2:
        raise ValueError(f"cutoff={cutoff}; expected one minus a cosine, in [0, 2]")
    clustering = Clustering(Share(float(important)), cutoff)
    name = f"pact:layer={layer},important={spelled(float(important))},cutoff={cutoff:g}"
    return Method(
        ByImage(CentresFirst(clustering), clustering),
        EachImage(clustering, layer),
        MixImage(IntoCentres(clustering)),
        name=name,
        weigh=Clusters(),
    )
