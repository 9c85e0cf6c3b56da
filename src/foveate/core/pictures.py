"""Decisions that each image takes for itself, once, when it is read: counts, orders and merges image by image.

Images of earlier turns have decided, and are left as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .schedules import check_depth, check_keep, check_layer
from .selection import quotas
from .tower import Layer
from .view import View


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

    def cosines(self, some: Float[Tensor, "p E"], others: Float[Tensor, "q E"]) -> Float[Tensor, "p q"]:
        """Cosine similarities; 0 with a vector of zeros."""
        self.view.spend(2.0 * some.shape[0] * others.shape[0] * some.shape[1])
        return torch.nn.functional.normalize(some, dim=-1) @ torch.nn.functional.normalize(others, dim=-1).T

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """As `View.once`, for this image."""
        return self.view.once((key, self.sample, self.image), compute)


def pictures(view: View) -> tuple[Picture, ...]:
    """Every image of which tokens run in this forward."""
    found: tuple[Picture, ...] = view.once("pictures", lambda: _pictures(view))
    return found


def _pictures(view: View) -> tuple[Picture, ...]:
    here, found = view.place() >= 0, []
    owner = view.tokens.image.gather(1, view.visual.clamp(min=0))
    for sample in range(view.visual.shape[0]):
        for image in torch.unique(owner[sample][here[sample]]).tolist():
            columns = (view.tokens.image[sample] == image).nonzero()[:, 0]
            places = (here[sample] & (owner[sample] == image)).nonzero()[:, 0]
            number = torch.searchsorted(columns, view.visual[sample][places].contiguous())
            found.append(Picture(view, sample, image, places, number, int(columns.shape[0])))
    return tuple(found)


Count = Callable[[Picture], int]


def allotted(picture: Picture, count: Count) -> int:
    """How many of the image's tokens stay: `count`, or its share where a schedule wants another total."""
    shares = picture.view.once(("allotted", count), lambda: _allotted(picture.view, count))
    return int(shares[picture.sample, picture.image])


def _allotted(view: View, count: Count) -> dict[tuple[int, int], int]:
    found: dict[tuple[int, int], int] = {}
    for sample, (wanted, alive) in enumerate(zip(view.wanted.tolist(), view.alive.tolist(), strict=True)):
        own = [p for p in pictures(view) if p.sample == sample]
        sizes, counts = [len(p) for p in own], [min(count(p), len(p)) for p in own]
        if own and wanted != alive and wanted != alive - sum(sizes) + sum(counts):
            left = max(0, wanted - alive + sum(sizes))
            counts = quotas(torch.tensor([left]), torch.tensor([sizes]))[0].tolist()
        found.update({(sample, p.image): n for p, n in zip(own, counts, strict=True)})
    return found


Rank = Callable[[Picture, int], Tensor]
Mix = Callable[[Picture, Tensor], Tensor]


@dataclass(frozen=True)
class Share:
    """A count: `keep` of the tokens that an image came with, a fraction of them (rounded half up) or their number.

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
        if isinstance(self.keep, Integral):
            return min(int(self.keep), total)
        return math.floor(total * float(self.keep) + 0.5 + 1e-9)


@dataclass(frozen=True)
class EachImage:
    """The schedule: before layer `layer`, every image that is read now keeps as many tokens as `count` says.

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

    def check(self, layers: int) -> None:
        """Raises ValueError if the decoder is too shallow."""
        check_depth(self.layer, layers)

    def __call__(self, view: View) -> Int[Tensor, B]:
        """Counts to keep."""
        gone = [0] * view.visual.shape[0]
        for picture in pictures(view):
            gone[picture.sample] += max(0, len(picture) - self.count(picture))
        return view.alive - torch.tensor(gone, device=view.alive.device)


@dataclass(frozen=True)
class ByImage:
    """The score: in every image, what `rank` puts first within `count` (see `allotted`); an order for the rest.

    Attributes:
        rank: from an image and its count to (n), higher = keep.
        count: as in the schedule.
    """

    rank: Rank
    count: Count

    in_prompt = True  # there is nothing of an image to look at while decoding

    @property
    def tower(self) -> tuple[Layer, ...]:
        """Layers of the vision tower that `rank` and `count` look at."""
        return (*getattr(self.rank, "tower", ()), *getattr(self.count, "tower", ()))

    def __call__(self, view: View) -> Float[Tensor, "B N"]:
        """Scores: 3 for images of earlier turns, else in (1, 2) within the count and in (0, 1) past it."""
        scores = torch.full(view.visual.shape, 3.0, device=view.visual.device)
        for picture in pictures(view):
            count = allotted(picture, self.count)
            order = self.rank(picture, count).argsort(descending=True, stable=True)
            place = torch.empty_like(order).scatter(0, order, torch.arange(len(picture), device=order.device))
            scores[picture.sample, picture.places] = (place < count) + 1 - (place + 0.5) / len(picture)
        return scores


@dataclass(frozen=True)
class MixImage:
    """The merge: a kept token becomes a sum of its image's tokens, weighted by its row of a matrix.

    Attributes:
        weights: from an image and which of its tokens stay (n) to (n n); rows of tokens that go are not read.
    """

    weights: Mix

    @property
    def tower(self) -> tuple[Layer, ...]:
        """Layers of the vision tower that `weights` looks at."""
        return tuple(getattr(self.weights, "tower", ()))

    def __call__(self, view: View, keep: Bool[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        """New hidden states of the kept."""
        out = view.states(partial=True)
        for picture in pictures(view):
            stay = picture.of(keep)
            rows, states = self.weights(picture, stay)[stay], picture.states()
            view.spend(2.0 * rows.numel() * states.shape[1])
            out[picture.sample, picture.places[stay]] = (rows @ states).to(out.dtype)
        return out


def shared_out(into: Int[Tensor, n], weight: Float[Tensor, n]) -> Float[Tensor, "n n"]:
    """The matrix of weighted means: token j goes to `into[j]`; a row's weights sum to 1, or 0 where none does."""
    spread = torch.zeros(len(into), len(into), device=weight.device)
    spread[into, torch.arange(len(into), device=weight.device)] = weight
    return spread / spread.sum(1, keepdim=True).clamp(min=1e-30)


def nearest(similar: Float[Tensor, "n n"], target: Bool[Tensor, n]) -> Int[Tensor, n]:
    """For each token the most similar one among `target`, for a target itself; at least one target is needed."""
    near = similar.masked_fill(~target, -torch.inf).argmax(1)
    return torch.where(target, torch.arange(len(near), device=near.device), near)
