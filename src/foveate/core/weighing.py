"""What a kept token weighs: for how many tokens it speaks, once others have left.

A kept visual token carries the number n of tokens that it stands for: itself, and those of the
dropped that joined it. Every query then adds log(n) to its product with the token's key, as if the
key were there n times. This is proportional attention (ToMe, Bolya et al., arXiv 2210.09461, eq.
1), which PACT (2504.08966) carried into the decoders of VLMs; here it goes with any score, schedule
and merge. A `Weigh` says whom a dropped token joins; `Mean` makes the kept token the mean of those
that joined it.

Each image is its own: a token joins one of its own image, or nobody if its image keeps none. Cuts
add up: whoever joins brings its whole number along. Text has the number 1.

Shapes: B samples, N tokens, G those that leave, K those that stay, E the width of what is compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .contract import Merge, Weigh
from .tokens import TokenMap
from .view import View

NOBODY = -1  # the owner of a token that joins none
PLACE = 1.0  # how much nearness in the picture counts, where it does and nobody says
CUTOFF = 0.7  # cosine: what is less like a kept token counts for it, but is not averaged into it (PACT's idea)


@dataclass(frozen=True, eq=False)
class AtCut:
    """The visual tokens of one layer where some of them leave. All of an image are here, or none.

    Attributes:
        features: what tells how alike they are: hidden states that enter the layer if the tokens
            run now, else the layer's keys, rotated, heads side by side.
        keep: which of them stay.
        gone: which of them leave; what is neither is a fill.
        image: the image of each.
        place: row and column on the image's grid, or 0 and the number in the sequence where there
            is none.
        area: of each one's image, in cells of its grid; of an image without a grid, its number of
            tokens squared.
        numbers: for how many tokens each speaks so far.
        spend: counts FLOPs.
        into: whom each token goes into by the merge's own clusters, as places in N or -1; None
            where it has none, or where the tokens do not run now.
    """

    features: Float[Tensor, "B N E"]
    keep: Bool[Tensor, "B N"]
    gone: Bool[Tensor, "B N"]
    image: Int[Tensor, "B N"]
    place: Int[Tensor, "B N 2"]
    area: Float[Tensor, "B N"]
    numbers: Float[Tensor, "B N"]
    spend: Callable[[float], None]
    into: Int[Tensor, "B N"] | None = None

    @staticmethod
    def of(
        features: Float[Tensor, "B N E"],
        columns: Int[Tensor, "B N"],
        keep: Bool[Tensor, "B N"],
        gone: Bool[Tensor, "B N"],
        tokens: TokenMap,
        numbers: Float[Tensor, "B N"],
        spend: Callable[[float], None],
    ) -> AtCut:
        """The tokens in `columns`; fills may point anywhere."""
        image, place, area = tokens.places(columns)
        return AtCut(features.float(), keep, gone, image, place, area, numbers, spend)

    @staticmethod
    def of_view(view: View, keep: Bool[Tensor, "B N"]) -> AtCut:
        """The tokens of `view.visual` that run now; others, of earlier turns, are fills here.

        A view has one cut.
        """

        def find() -> AtCut:
            here = (view.place() >= 0) & view.mask
            numbers = torch.ones_like(view.visual, dtype=torch.float32)
            return AtCut.of(
                view.states(partial=True),
                view.visual,
                keep & here,
                here & ~keep,
                view.tokens,
                numbers if view.numbers is None else view.numbers,
                view.spend,
            )

        found: AtCut = view.once("cut", find)
        return found

    @cached_property
    def leaving(self) -> tuple[Int[Tensor, "B G"], Bool[Tensor, "B G"]]:
        """Places of those that leave, in order, and which entries are real."""
        return gathered(self.gone)

    @cached_property
    def staying(self) -> tuple[Int[Tensor, "B K"], Bool[Tensor, "B K"]]:
        """Places of those that stay, in order, and which entries are real."""
        return gathered(self.keep)

    @cached_property
    def directions(self) -> Float[Tensor, "B N E"]:
        """Features of length 1."""
        return torch.nn.functional.normalize(self.features, dim=-1)

    def cosines(self) -> Float[Tensor, "B G K"]:
        """How alike those that leave and those that stay are."""
        leave, stay = (_rows(self.directions, part[0]) for part in (self.leaving, self.staying))
        self.spend(2.0 * leave.shape[0] * leave.shape[1] * stay.shape[1] * stay.shape[2])
        return leave @ stay.mT

    def distances(self) -> Float[Tensor, "B G K"]:
        """Squared distances in the picture, in units of its area."""
        leave, stay = (_rows(self.place, part[0]) for part in (self.leaving, self.staying))
        apart = (leave[:, :, None] - stay[:, None]).float()
        return apart.square().sum(-1) / self.area.gather(1, self.leaving[0])[:, :, None]

    def joined(self, alike: Float[Tensor, "B G K"]) -> Int[Tensor, "B N"]:
        """Whom each token joins: itself if it stays, else the most alike of its image that stays,
        of equals the first.

        Args:
            alike: of those that leave and those that stay.

        Returns:
            Places in N; `NOBODY` for fills, and where the image keeps none.
        """
        (leave, leaves), (stay, stays) = self.leaving, self.staying
        owner = torch.where(self.keep, torch.arange(self.keep.shape[1], device=stay.device), NOBODY)
        if not leave.shape[1] or not stay.shape[1]:
            return owner
        same = self.image.gather(1, leave)[:, :, None] == self.image.gather(1, stay)[:, None]
        same = same & leaves[:, :, None] & stays[:, None]
        best = alike.masked_fill(~same, -torch.inf).argmax(2)
        found = torch.where(same.any(2), stay.gather(1, best), NOBODY)
        # Fills of `leave` write into a spare last place.
        place = torch.where(leaves, leave, owner.shape[1])
        return torch.nn.functional.pad(owner, (0, 1)).scatter(1, place, found)[:, :-1]

    def summed(self, owner: Int[Tensor, "B N"]) -> Float[Tensor, "B N"]:
        """Numbers after the cut: each that stays has its own and those of all that joined it; 0
        elsewhere.
        """
        present = (owner >= 0) & (self.keep | self.gone)
        sums = torch.zeros_like(self.numbers)
        return sums.scatter_add(1, owner.clamp(min=0), self.numbers * present)

    def means(
        self, values: Float[Tensor, "B N V"], owner: Int[Tensor, "B N"], cutoff: float
    ) -> Float[Tensor, "B N V"]:
        """Of each that stays, the mean of itself and of what joined it, weighted by their numbers.

        What nothing joined is as it was, to the bit; what does not stay is not to be read.

        Args:
            values: to be averaged.
            owner: whom each token joins.
            cutoff: cosine of the features below which a token is not averaged.
        """
        into = owner.clamp(min=0)
        cosine = (self.directions * _rows(self.directions, into)).sum(-1)
        share = self.numbers * (self.keep | (self.gone & (owner >= 0) & (cosine >= cutoff)))
        index = into[..., None].expand(values.shape)
        sums = torch.zeros(values.shape, dtype=torch.float32, device=values.device)
        sums = sums.scatter_add(1, index, values.float() * share[..., None])
        whole = torch.zeros_like(share).scatter_add(1, into, share)
        averaged = whole > share
        return torch.where(
            averaged[..., None], sums / whole.clamp(min=1e-30)[..., None], values.float()
        )


@dataclass(frozen=True)
class Nearest(Weigh):
    """A dropped token joins the kept token that is most like it, by cosine of hidden states at the
    cut.

    Attributes:
        place: how much nearness in the picture counts beside: `place` times the squared distance,
            in units of the picture's area, is taken off the cosine.
    """

    place: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.place) and self.place >= 0):
            raise ValueError(f"place={self.place}; expected a number, 0 or more")

    def owners(self, at: AtCut) -> Int[Tensor, "B N"]:
        """Whom each token joins."""
        alike = at.cosines()
        return at.joined(alike - self.place * at.distances() if self.place else alike)


@dataclass(frozen=True)
class Cell(Weigh):
    """A dropped token joins the kept token that lies nearest in the picture."""

    def owners(self, at: AtCut) -> Int[Tensor, "B N"]:
        """Whom each token joins."""
        return at.joined(-at.distances())


@dataclass(frozen=True)
class Clusters(Weigh):
    """A dropped token joins the kept token into which the method's own merge puts it; what is
    merged nowhere is lost.

    Tokens of earlier turns, which no merge sees, join as in `Nearest`.
    """

    of_merge = True

    def owners(self, at: AtCut) -> Int[Tensor, "B N"]:
        """Whom each token joins."""
        if at.into is None:
            return Nearest().owners(at)
        stays = at.keep.gather(1, at.into.clamp(min=0))
        return torch.where((at.into >= 0) & stays & (at.keep | at.gone), at.into, NOBODY)


@dataclass(frozen=True)
class Uniform(Weigh):
    """Every kept token of an image has the same number: a control, which gives the image its mass
    and no more.
    """

    def owners(self, at: AtCut) -> Int[Tensor, "B N"]:
        """As `Nearest`, for a mean."""
        return Nearest().owners(at)

    def numbers(self, at: AtCut, owner: Int[Tensor, "B N"]) -> Float[Tensor, "B N"]:
        """The image's whole number, shared out evenly."""
        images = int(at.image.max().clamp(min=-1)) + 2  # one more, for what is of no image
        slot = at.image.clamp(min=-1) + 1
        empty = torch.zeros((len(slot), images), device=slot.device, dtype=torch.float32)
        whole = empty.scatter_add(1, slot, at.numbers * (at.keep | at.gone))
        kept = empty.scatter_add(1, slot, at.keep.float())
        return (whole / kept.clamp(min=1)).gather(1, slot) * at.keep


@dataclass(frozen=True)
class Mean(Merge):
    """A kept token's state becomes the mean of itself and of the dropped that joined it, weighted
    by their numbers.

    Attributes:
        by: says whom a dropped token joins.
        cutoff: cosine; what is less like its kept token is not averaged. It still counts in the
            token's number.
    """

    by: Weigh = Nearest()
    cutoff: float = CUTOFF
    clusters = True

    def __post_init__(self) -> None:
        if not -1 <= self.cutoff <= 1:
            raise ValueError(f"cutoff={self.cutoff}; expected a cosine, in [-1, 1]")

    def __call__(
        self, view: View, keep: Bool[Tensor, "B N"], counts: Int[Tensor, B]
    ) -> Float[Tensor, "B N D"]:
        """New hidden states of the kept that run now."""
        at = AtCut.of_view(view, keep)
        return at.means(at.features, self.owners(view, keep, counts), self.cutoff)

    def owners(
        self, view: View, keep: Bool[Tensor, "B N"], counts: Int[Tensor, B]
    ) -> Int[Tensor, "B N"]:
        """Whom each token joins, found once for a decision."""
        return owners(self.by, view, keep)


def owners(weigh: Weigh, view: View, keep: Bool[Tensor, "B N"]) -> Int[Tensor, "B N"]:
    """Whom each token of `view.visual` joins, found once for weights and means of one decision."""
    found: Tensor = view.once(("owners", weigh), lambda: weigh.owners(AtCut.of_view(view, keep)))
    return found


def gathered(mask: Bool[Tensor, "B N"]) -> tuple[Int[Tensor, "B M"], Bool[Tensor, "B M"]]:
    """Places of the true entries of each row, in order, padded to the longest row; and which of
    them are real.
    """
    count = mask.sum(1, keepdim=True)
    most = int(count.max()) if mask.numel() else 0
    order = (~mask).long().argsort(dim=1, stable=True)[:, :most]
    return order, torch.arange(most, device=mask.device) < count


def _rows(values: Tensor, index: Int[Tensor, "B M"]) -> Tensor:
    """Rows `index` of values (B N V)."""
    return values.gather(1, index[..., None].expand(*index.shape, values.shape[-1]))
