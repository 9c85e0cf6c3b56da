"""Decisions that each image takes for itself, once, when it is read: counts, orders and merges
image by image.

Images of earlier turns have decided, and are left as they are.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .contract import Merge, Needs, Part, Schedule, Score
from .schedules import check_depth, check_keep, check_layer, number_kept, planned_cut
from .selection import quotas
from .tower import Layer
from .view import Projection, View


@dataclass(frozen=True, eq=False)
class Picture:
    """The alive tokens of one image, in a forward that runs them; n of them, in order.

    Attributes:
        view: where they are.
        sample: whose image it is.
        image: the image's number in its sample.
        places: the tokens' places in `view.visual`.
        number: the tokens' numbers in the image as it came.
        started: how many tokens it came with.
    """

    view: View
    sample: int
    image: int
    places: Int[Tensor, n]
    number: Int[Tensor, n]
    started: int

    def __len__(self) -> int:
        return int(self.places.shape[0])

    def of(self, values: Float[Tensor, "B N *K"] | Bool[Tensor, "B N"]) -> Tensor:
        """This image's part of values over `view.visual`."""
        return values[self.sample, self.places]

    def states(self) -> Float[Tensor, "n D"]:
        """Hidden states that enter the layer."""
        return self.of(self.view.once("states", lambda: self.view.states(partial=True))).float()

    def attention(self, layer: Layer = None) -> Float[Tensor, n]:
        """What the tokens receive in the vision tower, mean over heads."""
        return self.of(self.view.tower.attention(layer)).mean(-1)

    def keys(self, layer: Layer = None) -> Float[Tensor, "n E"]:
        """The tower's keys, mean over heads."""
        return self.of(self.view.tower.keys(layer)).mean(-2)

    def projected(self, which: Projection, rotated: bool) -> Float[Tensor, "n H E"]:
        """Queries or keys of the layer about to run; see `View.projected`."""
        return self.of(self.view.projected(which, rotated)).float()

    def cosines(
        self, some: Float[Tensor, "p E"], others: Float[Tensor, "q E"]
    ) -> Float[Tensor, "p q"]:
        """Cosine similarities; 0 with a vector of zeros."""
        self.view.spend(2.0 * some.shape[0] * others.shape[0] * some.shape[1])
        return (
            torch.nn.functional.normalize(some, dim=-1)
            @ torch.nn.functional.normalize(others, dim=-1).T
        )

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """As `View.once`, for this image."""
        return self.view.once((key, self.sample, self.image), compute)


def pictures(view: View) -> tuple[Picture, ...]:
    """Every image of which tokens run in this forward."""
    found: tuple[Picture, ...] = view.once("pictures", lambda: _pictures(view))
    return found


def _pictures(view: View) -> tuple[Picture, ...]:
    """As `pictures`, found anew."""
    found = []
    device = view.visual.device
    # Which tokens are whose is worked out on the host, which waits twice and no more.
    owner = view.tokens.image.gather(1, view.visual.clamp(min=0))
    owner = torch.where(view.place() >= 0, owner, -1)  # of the tokens whose hidden states run now
    owners, visual = torch.stack([owner, view.visual]).cpu()
    images = view.tokens.image.cpu()
    for sample in range(len(visual)):
        for image in owners[sample].unique().tolist():
            if image < 0:
                continue
            columns = (images[sample] == image).nonzero()[:, 0]
            places = (owners[sample] == image).nonzero()[:, 0]
            # A token's number is the place of its column among all columns that the image came
            # with.
            number = torch.searchsorted(columns, visual[sample][places].contiguous())
            found.append(
                Picture(view, sample, image, places.to(device), number.to(device), columns.shape[0])
            )
    return tuple(found)


class Count(Part):
    """How many tokens an image keeps."""

    @abstractmethod
    def __call__(self, picture: Picture) -> int:
        """Tokens to keep of the image."""

    def plan(self, total: int) -> int | None:
        """Tokens to keep of an image of `total` tokens; None if that depends on the image."""
        return None


class Rank(Part):
    """Which tokens of an image matter."""

    @abstractmethod
    def __call__(self, picture: Picture, count: int) -> Float[Tensor, n]:
        """Scores of the image's tokens (n), higher = keep, of which the first `count` are to stay."""


class Mix(Part):
    """What the tokens of an image become."""

    @abstractmethod
    def __call__(
        self, picture: Picture, stay: Bool[Tensor, n], counts: Int[Tensor, B]
    ) -> Float[Tensor, "n n"]:
        """Weights of a merge: row i says of which of the image's tokens token i becomes the sum.

        Args:
            picture: the image.
            stay: which of its tokens stay (n); rows of the others are not read.
            counts: tokens that the schedule wanted to stay of each sample, all images together.
        """

    @property
    def clusters(self) -> bool:
        """Whether every dropped token goes into one kept token, as `owners` tells."""
        return False

    def owners(
        self, picture: Picture, stay: Bool[Tensor, n], counts: Int[Tensor, B]
    ) -> Int[Tensor, n]:
        """The token that each of the image's tokens goes into; -1, or a token that does not stay,
        loses it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no clusters")


class Into(Mix):
    """A mix by which every token goes into one other, so that clusters have numbers
    (`weighing.Clusters`).
    """

    clusters = True

    @abstractmethod
    def find(
        self, picture: Picture, stay: Bool[Tensor, n], counts: Int[Tensor, B]
    ) -> Int[Tensor, n]:
        """The token that each of the image's tokens goes into, itself if it stays; -1 for what is
        lost.
        """

    def share(self, picture: Picture) -> Float[Tensor, n]:
        """What each token counts in the mean of its cluster; all the same by default."""
        return torch.ones(len(picture), device=picture.places.device, dtype=torch.float32)

    def owners(
        self, picture: Picture, stay: Bool[Tensor, n], counts: Int[Tensor, B]
    ) -> Int[Tensor, n]:
        """As `find`, once for states and numbers of a decision."""
        found: Tensor = picture.once(("into", self), lambda: self.find(picture, stay, counts))
        return found

    def __call__(
        self, picture: Picture, stay: Bool[Tensor, n], counts: Int[Tensor, B]
    ) -> Float[Tensor, "n n"]:
        """Every cluster's mean."""
        return shared_out(self.owners(picture, stay, counts), self.share(picture))


def allotted(view: View, count: Count, counts: Int[Tensor, B]) -> dict[tuple[int, int], int]:
    """How many tokens each image keeps: `count`, or its share where a schedule wants another total.

    Args:
        view: whose images.
        count: what an image would keep.
        counts: tokens that are to stay of each sample.

    Returns:
        The number for every (sample, image) that is read now.
    """
    found: dict[tuple[int, int], int] = {}
    for sample, (wanted, alive) in enumerate(
        zip(counts.tolist(), view.alive.tolist(), strict=True)
    ):
        own = [p for p in pictures(view) if p.sample == sample]
        sizes = [len(p) for p in own]
        kept = [min(count(p), len(p)) for p in own]
        old = alive - sum(sizes)  # tokens of earlier turns, which stay
        if own and wanted not in (
            alive,
            old + sum(kept),
        ):  # not this count's schedule: share out what it leaves
            left = max(0, wanted - old)
            kept = quotas(
                torch.tensor([left], dtype=torch.long, device="cpu"),
                torch.tensor([sizes], dtype=torch.long, device="cpu"),
            )[0].tolist()
        found.update({(sample, p.image): n for p, n in zip(own, kept, strict=True)})
    return found


@dataclass(frozen=True)
class Share(Count):
    """A count: `keep` of the tokens that an image came with, a fraction of them (rounded half up)
    or their number.

    Raises:
        ValueError: `keep` out of range.
    """

    keep: float | int

    def __post_init__(self) -> None:
        check_keep(self.keep)

    def __call__(self, picture: Picture) -> int:
        """Tokens to keep of the image."""
        return self.of(picture.started)

    def of(self, total: int) -> int:
        """`keep` of `total`."""
        return number_kept(total, self.keep)

    def plan(self, total: int) -> int:
        """`keep` of `total`."""
        return self.of(total)


@dataclass(frozen=True)
class EachImage(Schedule):
    """The schedule: before layer `layer`, every image that is read now keeps as many tokens as
    `count` says.

    Raises:
        ValueError: a negative layer.
    """

    count: Count
    layer: int = 0

    def __post_init__(self) -> None:
        check_layer(self.layer)

    def acts(self, layer: int, step: int) -> bool:
        """Only before its layer, in a prefill."""
        return step == 0 and layer == self.layer

    def check(self, layers: int, family: str = "") -> None:
        """Raises ValueError if the decoder is too shallow."""
        check_depth(self.layer, layers)

    def __call__(self, view: View) -> Int[Tensor, B]:
        """Counts to keep."""
        gone = [0] * view.visual.shape[0]
        for picture in pictures(view):
            gone[picture.sample] += max(0, len(picture) - self.count(picture))
        return view.alive - torch.tensor(gone, device=view.alive.device, dtype=torch.long)

    def plan(self, total: int, layers: int) -> list[int] | None:
        """As if all tokens were one image's: of several, each may round its share up."""
        kept = self.count.plan(total)
        return None if kept is None else planned_cut(total, layers, self.layer, kept)


@dataclass(frozen=True)
class ByImage(Score):
    """The score: in every image, what `rank` puts first within `count` (see `allotted`); an order
    for the rest.

    Attributes:
        rank: orders an image's tokens.
        count: as in the schedule.
    """

    rank: Rank
    count: Count

    own = Needs(
        in_prompt=True, counts=True
    )  # there is nothing of an image to look at while decoding

    def __call__(self, view: View, counts: Int[Tensor, B]) -> Float[Tensor, "B N"]:
        """Scores: 3 for images of earlier turns, else in (1, 2) within the count and in (0, 1) past
        it.
        """
        scores = torch.full(view.visual.shape, 3.0, device=view.visual.device, dtype=torch.float32)
        shares = allotted(view, self.count, counts)
        for picture in pictures(view):
            count = shares[picture.sample, picture.image]
            # From scores to places: the inverse of the permutation that sorts them.
            order = self.rank(picture, count).argsort(descending=True, stable=True)
            place = torch.empty_like(order).scatter(
                0, order, torch.arange(len(picture), device=order.device)
            )
            scores[picture.sample, picture.places] = (
                (place < count) + 1 - (place.float() + 0.5) / len(picture)
            )
        return scores


@dataclass(frozen=True)
class MixImage(Merge):
    """The merge: a kept token becomes a sum of its image's tokens, weighted by its row of a matrix.

    Attributes:
        weights: the matrix.
    """

    weights: Mix

    def __call__(
        self, view: View, keep: Bool[Tensor, "B N"], counts: Int[Tensor, B]
    ) -> Float[Tensor, "B N D"]:
        """New hidden states of the kept."""
        out = view.states(partial=True)
        for picture in pictures(view):
            stay = picture.of(keep)
            rows = self.weights(picture, stay, counts)[
                stay
            ]  # of the tokens that stay alone: (kept n)
            states = picture.states()
            view.spend(2.0 * rows.numel() * states.shape[1])
            out[picture.sample, picture.places[stay]] = (rows @ states).to(out.dtype)
        return out

    @property
    def clusters(self) -> bool:
        """As the matrix has it."""
        return self.weights.clusters

    def owners(
        self, view: View, keep: Bool[Tensor, "B N"], counts: Int[Tensor, B]
    ) -> Int[Tensor, "B N"]:
        """Image by image; -1 for tokens of earlier turns."""
        out = torch.full(view.visual.shape, -1, device=view.visual.device, dtype=torch.long)
        for picture in pictures(view):
            into = self.weights.owners(picture, picture.of(keep), counts)
            place = picture.places[into.clamp(min=0)]
            out[picture.sample, picture.places] = torch.where(into < 0, -1, place)
        return out


def shared_out(into: Int[Tensor, n], weight: Float[Tensor, n]) -> Float[Tensor, "n n"]:
    """The matrix of weighted means: token j goes to `into[j]`, or nowhere where that is -1.

    A row's weights sum to 1, or to 0 where nothing goes into it.
    """
    spread = torch.zeros(len(into), len(into), device=weight.device, dtype=torch.float32)
    goes = (into >= 0).nonzero()[:, 0]
    spread[into[goes], goes] = weight[goes]  # [i, j]: what token j gives to token i
    return spread / spread.sum(1, keepdim=True).clamp(min=1e-30)


def nearest(similar: Float[Tensor, "n n"], target: Bool[Tensor, n]) -> Int[Tensor, n]:
    """For each token the most similar one among `target`, for a target itself; at least one target
    is needed.
    """
    near = similar.masked_fill(~target, -torch.inf).argmax(1)
    return torch.where(target, torch.arange(len(near), device=near.device), near)
