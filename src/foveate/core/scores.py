"""Which tokens matter: the scores that methods share, and those that have a name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .contract import Needs, Score
from .diversity import Diverse
from .remembered import Remembered, Saliency
from .selection import places
from .tokens import Kind
from .view import View


@dataclass(frozen=True)
class LastQuery(Score):
    """Attention of the newest token to each visual token, mean over heads (FastV's code).

    Attributes:
        back: in the layer before (1), or in the one about to run (0).
    """

    back: int = 1

    @property
    def own(self) -> Needs:
        """A layer before, if it looks there."""
        return Needs(earliest=self.back)

    def __call__(self, view: View, counts: Int[Tensor, B]) -> Float[Tensor, "B N"]:
        """Scores in [0, 1]."""
        return view.of_visual(view.attention(view.newest, self.back)[:, :, 0]).mean(1)


def asking(view: View) -> Int[Tensor, "B Q"]:
    """Columns of the instruction's tokens that run now, -1 at fills.

    Where none of them runs, the newest token's column.
    """
    if view.rows.shape[1] == 1:
        return view.newest  # as in a decode step
    known = view.tokens.are(Kind.INSTRUCTION).gather(1, view.rows.clamp(min=0)) & (view.rows >= 0)
    chosen = torch.where(known.any(1, keepdim=True), known, view.rows == view.newest)
    return packed(torch.where(chosen, view.rows, -1))


def packed(columns: Int[Tensor, "B T"]) -> Int[Tensor, "B Q"]:
    """`columns` without the places that are -1 in every sample, the others first."""
    order = (columns < 0).long().argsort(dim=1, stable=True)
    most = int((columns >= 0).sum(1).max()) if columns.numel() else 0
    return columns.gather(1, order)[:, : max(1, most)]


@dataclass(frozen=True)
class Instruction(Score):
    """Attention of the instruction's tokens in the layer before, mean over them and over heads.

    In a decode step, which runs no instruction, that of the newest token.
    """

    own = Needs(earliest=1)

    def __call__(self, view: View, counts: Int[Tensor, B]) -> Float[Tensor, "B N"]:
        """Scores in [0, 1]."""
        rows = asking(view)
        return view.of_visual(sum_over_rows(view, rows)) / (rows >= 0).sum(1, keepdim=True).clamp(
            min=1
        )


@dataclass(frozen=True)
class Received(Score):
    """Attention received in the layer before from all later tokens that run now (FastV's text).

    The score is the mean over those tokens. FastV (2403.06764) says "the average attention-score
    received from all other tokens"; a causal model pays none to later ones, so earlier tokens are
    not counted (nor are they where images see both ways). Rows are computed `CHUNK` at a time.
    """

    own = Needs(earliest=1)

    def __call__(self, view: View, counts: Int[Tensor, B]) -> Float[Tensor, "B N"]:
        """Scores in [0, 1]."""
        running = (
            view.newest if view.rows.shape[1] == 1 else view.rows
        )  # in a decode step the features ask for it, too
        total = view.of_visual(sum_over_rows(view, running, own=False))
        # How many of the rows that run now come after each visual token: those right of its column
        # among them.
        rows = view.rows.sort(1).values.contiguous()
        later = rows.shape[1] - torch.searchsorted(rows, view.visual.contiguous(), right=True)
        return total / later.clamp(min=1)


CHUNK = 64  # query rows at a time, so that no whole attention matrix ever exists


def sum_over_rows(
    view: View,
    queries: Int[Tensor, "B Q"],
    own: bool = True,
    heads: Literal["mean", "max"] = "mean",
) -> Float[Tensor, "B C"]:
    """Attention from the rows of `queries`, summed over rows.

    Args:
        view: whose layer before is asked.
        queries: columns; -1 for none.
        own: whether what a row pays to itself and to later columns counts.
        heads: the mean over heads, or in each row the most that any head pays.
    """
    total = torch.zeros(view.tokens.kind.shape, device=queries.device, dtype=torch.float32)
    for start in range(0, queries.shape[1], CHUNK):
        part = queries if queries.shape[1] <= CHUNK else queries[:, start : start + CHUNK]
        paid = view.attention(part)
        paid = paid.mean(1) if heads == "mean" else paid.amax(1)
        if not own:  # nor to later columns, which a row sees where images see both ways
            paid = paid * (torch.arange(paid.shape[-1], device=part.device) < part[..., None])
        total = total + paid.sum(1)
    return total


@dataclass(frozen=True)
class LayersMax(Score):
    """The most that the newest token paid in any of the last `back` layers, mean over heads."""

    back: int = 3

    @property
    def own(self) -> Needs:
        """As many layers as it looks back, as far as there are so many."""
        return Needs(back=self.back, earliest=1)

    def __call__(self, view: View, counts: Int[Tensor, B]) -> Float[Tensor, "B N"]:
        """Scores in [0, 1]."""
        backs = range(1, max(1, min(self.back, view.layer)) + 1)
        layers = [view.attention(view.newest, back=n)[:, :, 0].mean(1) for n in backs]
        return view.of_visual(torch.stack(layers).amax(0))


@dataclass(frozen=True)
class Accumulated(Score):
    """What `base` has given so far, summed over the steps on which the method was consulted.

    Attributes:
        base: a score of attention.
        fade: factor on the past at every step; 1 forgets nothing.
    """

    base: Score = LastQuery()
    fade: float = 1.0

    def _key(self, view: View) -> str:
        """One note for each layer."""
        return f"{self!r} before layer {view.layer}"

    def notice(self, view: View) -> None:
        """Adds this step, but not before layers where `base` cannot rank.

        There the view is shown to a part of `base` alone.
        """
        if view.layer < self.needs.earliest:
            return
        key = self._key(view)
        found = self.base(view, view.alive)
        view.notes[key] = self.fade * view.note(key) + view.on_columns(found).float()

    def __call__(self, view: View, counts: Int[Tensor, B]) -> Float[Tensor, "B N"]:
        """Scores >= 0.

        Raises:
            ValueError: `base` cannot rank before this layer.
        """
        if self._key(view) not in view.notes:
            raise ValueError(
                f"layer {view.layer} has no layer before it by which {self.base} could rank; use layer >= "
                f"{self.needs.earliest}"
            )
        return view.of_visual(view.note(self._key(view)))


@dataclass(frozen=True)
class AnyOf(Score):
    """Keeps what any of several scores ranks high: the best of a token's ranks.

    This is a round robin over the rankings. Of all ways to mix rankings this loses least against
    the best single one in the worst case: half the budget still holds the upper half of what each
    of two rankings would have kept.
    """

    scores: tuple[Score, ...]

    def __post_init__(self) -> None:
        if not self.scores:
            raise ValueError("AnyOf(()) has no parts; give it at least one score")

    def __call__(self, view: View, counts: Int[Tensor, B]) -> Float[Tensor, "B N"]:
        """Scores <= 0: minus the best rank; ties between parts go to the earlier one."""
        ranks = []
        for index, part in enumerate(self.scores):
            ranks.append(
                places(part(view, counts), view.mask).float() + index / (len(self.scores) + 1)
            )
        return -torch.stack(ranks).amin(0)


@dataclass(frozen=True)
class Random(Score):
    """A fixed pseudo-random order.

    It depends on the seed and on a token's number in its sample, on nothing else.

    So a sample gets the same order alone and in a batch. Average over seeds for a fair control.
    """

    seed: int = 0

    def __call__(self, view: View, counts: Int[Tensor, B]) -> Float[Tensor, "B N"]:
        """Scores in [0, 1)."""
        first = (
            view.tokens.image.ge(0).long().cumsum(1) - 1
        )  # each column's number among the sample's visual tokens
        number = first.gather(1, view.visual.clamp(min=0))
        # A hash of 32 bits: seed and number are spread by large odd factors, then shifted and
        # multiplied twice.
        mixed = number * 2654435761 + (self.seed + 1) * 40503 * 65537
        for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39), (15, 1)):
            mixed = ((mixed & 0xFFFFFFFF) ^ ((mixed & 0xFFFFFFFF) >> shift)) * factor
        return (mixed & 0xFFFFFF).float() / 2**24


@dataclass(frozen=True)
class Even(Score):
    """An order in which every beginning is spread evenly over each image.

    It is what plain downsampling keeps. On a grid of tokens the order is that of Bayer's dither
    matrix, so that a quarter of the tokens is every second row and column; where tokens form no
    grid it is the van der Corput order of their numbers.
    """

    def __call__(self, view: View, counts: Int[Tensor, B]) -> Float[Tensor, "B N"]:
        """Scores in (-1, 0]."""
        image = view.tokens.image
        inside = torch.zeros_like(image)  # each column's number within its own image
        for i in range(int(image.max()) + 1 if image.numel() else 0):
            inside = torch.where(image == i, (image == i).long().cumsum(1) - 1, inside)
        number = inside.gather(1, view.visual.clamp(min=0))
        if view.tokens.grid is None:
            return -_reversed_bits(number, 24).float() / 2**24
        row = number // view.tokens.grid[1]
        column = number % view.tokens.grid[1]
        return -_bayer(row, column, 8).float() / 2**16


def _reversed_bits(number: Tensor, bits: int) -> Tensor:
    """Van der Corput's order, times 2**bits: the lowest bit of `number` becomes the highest."""
    out = torch.zeros_like(number)
    for i in range(bits):
        out = out | (((number >> i) & 1) << (bits - 1 - i))
    return out


def _bayer(row: Tensor, column: Tensor, bits: int) -> Tensor:
    """Rank of (row, column) in Bayer's matrix of side 2**bits.

    It is the bits of row ^ column and of row, interleaved and reversed.
    """
    out = torch.zeros_like(row)
    crossed = row ^ column
    for i in range(bits):
        pair = (((crossed >> i) & 1) << 1) | ((row >> i) & 1)
        out = out | (pair << (2 * (bits - 1 - i)))
    return out


Ranking = Literal[
    "last",
    "instruction",
    "received",
    "layers",
    "accumulated",
    "tower",
    "diverse",
    "mix",
    "random",
    "even",
]
RANKINGS: dict[str, Score] = {
    "last": LastQuery(),
    "instruction": Instruction(),
    "received": Received(),
    "layers": LayersMax(),
    "accumulated": Accumulated(),
    "tower": Remembered(Saliency()),
    "diverse": Remembered(Diverse()),
    "mix": AnyOf((LastQuery(), Received(), Even())),
    "random": Random(),
    "even": Even(),
}
