"""What the engine knows of a batch of sequences between forwards; it travels with their cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from jaxtyping import Int
from torch import Tensor

from ..core.tokens import TokenMap


@dataclass(frozen=True)
class Ledger:
    """State of a conversation after a forward.

    Attributes:
        tokens: what every column of the prompts is; columns past its end are responses.
        columns: columns so far, dropped ones included.
        step: the last decode step run since the last prefill (0: none yet).
        total: visual tokens that each sample has been given.
        text: tokens so far that are neither visual nor padding.
        alive: (layer, visual tokens in the caches from it on), by ascending layer.
        notes: what scores and schedules remember; see `View.notes`.
    """

    tokens: TokenMap
    columns: int
    step: int
    total: Int[Tensor, B]
    text: Int[Tensor, B]
    alive: tuple[tuple[int, Int[Tensor, B]], ...] = ()
    notes: dict[str, Tensor] = field(default_factory=dict)

    def cropped(self, count: int) -> Ledger:
        """The ledger without the last `count` columns, which are text."""
        columns = self.columns - count
        tokens = replace(self.tokens, kind=self.tokens.kind[:, :columns], image=self.tokens.image[:, :columns])
        notes = {key: values[:, :columns] for key, values in self.notes.items()}
        step, text = max(0, self.step - count), self.text - count
        return replace(self, tokens=tokens, columns=columns, step=step, text=text, notes=notes)

    def reindexed(self, rows: Callable[[Tensor], Tensor]) -> Ledger:
        """The ledger of other samples of the batch, as `rows` picks them."""
        tokens = replace(self.tokens, kind=rows(self.tokens.kind), image=rows(self.tokens.image))
        alive = tuple((layer, rows(counts)) for layer, counts in self.alive)
        notes = {key: rows(values) for key, values in self.notes.items()}
        return replace(self, tokens=tokens, total=rows(self.total), text=rows(self.text), alive=alive, notes=notes)
