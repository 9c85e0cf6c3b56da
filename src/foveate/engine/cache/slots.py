"""Which token lies in which slot of one layer's cache, and how to close the holes that eviction
leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Gather = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Move:
    """A compaction: per sample, the token in slot `source` moves to slot `target`; then `length`
    slots remain.
    """

    source: Int[Tensor, "B M"]
    target: Int[Tensor, "B M"]
    length: int


@dataclass(frozen=True)
class Slots:
    """Columns of the tokens in a layer's cache: a table for the first slots, then a run of `tail`
    columns.

    While nothing was dropped the table is absent and the run is everything, so an untouched layer
    costs nothing per step. A column of -1 is a fill: a slot that only a longer sample of the batch
    needs.

    Attributes:
        table: columns of the first slots, or None.
        masked: whether the table holds fills or padding, so that attention needs a mask.
        start: first column of the run.
        tail: length of the run.
    """

    table: Int[Tensor, "B P"] | None = None
    masked: bool = False
    start: int = 0
    tail: int = 0

    @property
    def key(self) -> tuple[int, int, int]:
        """The same for slots that hold the same tokens in the same order, as long as their table
        lives.

        Layers that lost the same tokens share their table, also where each has cropped its run by
        itself.
        """
        return (id(self.table), self.start, self.tail)

    @property
    def untouched(self) -> bool:
        """Whether the slots are simply all columns in order."""
        return self.table is None

    @property
    def length(self) -> int:
        """Slots in use."""
        return self.tail + (0 if self.table is None else self.table.shape[1])

    def columns(self, batch: int, device: torch.device) -> Int[Tensor, "B S"]:
        """The column in every slot."""
        run = torch.arange(self.start, self.start + self.tail, device=device).expand(batch, -1)
        return run if self.table is None else torch.cat([self.table, run], 1)

    def with_run(self, count: int) -> Slots:
        """These slots followed by the next `count` columns."""
        return replace(self, tail=self.tail + count)

    def with_rows(self, rows: Int[Tensor, "B R"], masked: bool, following: int) -> Slots:
        """These slots followed by `rows`; the run that comes after starts at column `following`."""
        table = torch.cat([self.columns(rows.shape[0], rows.device), rows], 1)
        return Slots(table, self.masked or masked, following, 0)

    def kept(self, alive: Bool[Tensor, "B C"]) -> tuple[Slots, Move | None]:
        """The slots after eviction of all columns that are not `alive`, and the move that achieves
        it.

        Tokens from the end fill the holes, so min(dropped, kept) tokens move and no slot stays dead
        but the fills of ragged batches. The order of slots is free: keys carry their positions, and
        every cached key precedes every query to come.
        """
        batch = alive.shape[0]
        device = alive.device
        columns = self.columns(batch, device)
        stay = alive.gather(1, columns.clamp(min=0)) & (columns >= 0)
        # The fullest sample decides how many slots remain. What stays beyond them moves into the
        # holes before them. The host waits once, for all numbers that it needs.
        count = stay.sum(1)
        index = torch.arange(columns.shape[1], device=device)
        mover = stay & (index >= count.max())
        hole = ~stay & (index < count.max())
        all_stay = (stay | (columns < 0)).all()
        facts = torch.stack([all_stay.long(), count.max(), count.min(), mover.sum(1).max()])
        whole, length, least, moves = facts.tolist()
        if whole:
            return self, None
        # A stable sort brings the marked slots to the front in order: first mover to first hole,
        # and so on. A sample has at least as many holes as movers, for all that stays fits into
        # `length` slots.
        source = (~mover).long().argsort(dim=1, stable=True)[:, :moves]
        target = (~hole).long().argsort(dim=1, stable=True)[:, :moves]
        # Samples with fewer moves than others copy a slot onto itself: the last one, which is cut
        # off below.
        valid = torch.arange(moves, device=device) < mover.sum(1, keepdim=True)
        scratch = columns.shape[1] - 1 if length < columns.shape[1] else 0
        source = torch.where(valid, source, scratch)
        target = torch.where(valid, target, scratch)
        # The table makes the same move as keys and values will; holes that nobody filled become
        # fills (-1).
        table = torch.where(stay, columns, -1)
        table = table.scatter(1, target, table.gather(1, source))[:, :length]
        start = (
            self.start + self.tail
        )  # of the next run: no column of the old one is known to be everywhere
        return Slots(table, self.masked or least < length, start, 0), Move(source, target, length)

    def reindexed(self, rows: Gather) -> Slots:
        """The slots of other samples of the batch, as `rows` picks them."""
        return self if self.table is None else replace(self, table=rows(self.table))

    def cropped(self, count: int) -> Slots:
        """These slots without the last `count` columns, which are of the run; `Ledger.cropped` sees
        to it.
        """
        return replace(self, tail=self.tail - count)
