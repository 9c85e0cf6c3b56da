"""For how many tokens each column speaks in a layer, and the bias that attention adds for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .slots import Slots


@dataclass(frozen=True, eq=False)
class Numbers:
    """One layer's numbers. Layers that hold the same share one object, and so their masks.

    Attributes:
        counts: for how many tokens each column speaks; columns past the end speak for themselves.
        bias: what attention adds to products with the column's key: strength x log(count).
        gathered: biases in the order of some slots, by the identity of their table; see `along`.
    """

    counts: Float[Tensor, "B C"]
    bias: Float[Tensor, "B C"]
    gathered: dict[int, tuple[Slots, Tensor]] = field(default_factory=dict, repr=False)

    @staticmethod
    def ones(batch: int, columns: int, device: torch.device) -> Numbers:
        """Every column speaks for itself."""
        one = torch.ones(batch, columns, device=device, dtype=torch.float32)
        return Numbers(one, torch.zeros_like(one))

    def extended(self, columns: int) -> Numbers:
        """These numbers for so many columns."""
        more = columns - self.counts.shape[1]
        if more <= 0:
            return self
        pad = torch.nn.functional.pad
        return Numbers(pad(self.counts, (0, more), value=1.0), pad(self.bias, (0, more)))

    def changed(
        self,
        columns: Int[Tensor, "B N"],
        real: Bool[Tensor, "B N"],
        counts: Float[Tensor, "B N"],
        strength: float,
    ) -> Numbers:
        """These numbers with new ones in some columns; entries that are not `real` change nothing."""
        width = self.counts.shape[1]
        place = torch.where(real, columns, width)  # fills write into a spare last column
        pad = torch.nn.functional.pad
        new = pad(self.counts, (0, 1)).scatter(1, place, counts.to(self.counts))[:, :width]
        bias = strength * counts.clamp(min=1e-30).log()
        return Numbers(new, pad(self.bias, (0, 1)).scatter(1, place, bias.to(new))[:, :width])

    def of(self, columns: Int[Tensor, "B S"]) -> Float[Tensor, "B S"]:
        """Numbers of these columns."""
        return torch.where(self._known(columns), self._at(self.counts, columns), 1.0)

    def biases(self, columns: Int[Tensor, "B S"]) -> Float[Tensor, "B S"]:
        """Biases of these columns."""
        return torch.where(self._known(columns), self._at(self.bias, columns), 0.0)

    def along(self, slots: Slots, more: int) -> Float[Tensor, "B S"]:
        """Biases of what lies in `slots`, and of `more` new columns after it, gathered once for all
        decode steps.

        Between two drops slots grow by their run alone, and its new columns speak for themselves:
        they add zeros.
        """
        batch, known = self.counts.shape
        first, bias = self.gathered.get(id(slots.table), (None, None))
        same = first is not None and first.table is slots.table and first.start == slots.start
        if bias is None or first is None or not same or first.tail > slots.tail:
            bias = self.biases(slots.columns(batch, self.bias.device))
            if slots.start + slots.tail >= known:  # all columns after these speak for themselves
                self.gathered.clear()
                self.gathered[id(slots.table)] = (slots, bias)
        return torch.nn.functional.pad(bias, (0, slots.length + more - bias.shape[1]))

    def _known(self, columns: Tensor) -> Tensor:
        return (columns >= 0) & (columns < self.counts.shape[1])

    def _at(self, values: Tensor, columns: Tensor) -> Tensor:
        return values.gather(1, columns.clamp(min=0, max=values.shape[1] - 1))

    def cropped(self, columns: int) -> Numbers:
        """The numbers of the first `columns` columns."""
        return Numbers(self.counts[:, :columns], self.bias[:, :columns])

    def reindexed(self, rows: Callable[[Tensor], Tensor]) -> Numbers:
        """The numbers of other samples of the batch, as `rows` picks them."""
        return Numbers(rows(self.counts), rows(self.bias))


Layers = Sequence[Numbers | None]  # of each layer; None where every token speaks for itself


def each(layers: Layers, change: Callable[[Numbers], Numbers]) -> tuple[Numbers | None, ...]:
    """What `change` makes of each layer's numbers, made once for layers that share theirs."""
    made: dict[int, Numbers] = {}
    for numbers in layers:
        if numbers is not None and id(numbers) not in made:
            made[id(numbers)] = change(numbers)
    return tuple(None if numbers is None else made[id(numbers)] for numbers in layers)
