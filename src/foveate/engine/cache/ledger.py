"""What the engine knows of a batch of sequences between forwards; it travels with their cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from jaxtyping import Int
from torch import Tensor

from ...core.tokens import Kind, TokenMap
from .numbers import Numbers, each


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
        numbers: for how many tokens each column speaks in each layer's cache; empty where each
            speaks for itself.
        notes: what scores and schedules remember; see `View.notes`.
        tail: columns at the end that every layer still holds, and that can so be taken back.
    """

    tokens: TokenMap
    columns: int
    step: int
    total: Int[Tensor, B]
    text: Int[Tensor, B]
    alive: tuple[tuple[int, Int[Tensor, B]], ...] = ()
    numbers: tuple[Numbers | None, ...] = ()
    notes: dict[str, Tensor] = field(default_factory=dict)
    tail: int = 0

    def cropped(self, count: int) -> Ledger:
        """The ledger without the last `count` columns.

        Raises:
            NotImplementedError: some layer has lost tokens among them.
        """
        if count > self.tail:
            raise NotImplementedError(
                f"cannot take back {count} tokens: only the last {self.tail} came after the last drop; "
                "take back fewer, or start from a new cache"
            )
        columns = self.columns - count
        kind = self.tokens.with_responses(self.columns).kind[:, columns:]
        images = (kind == int(Kind.IMAGE)).sum(1)
        text = self.text - ((kind != int(Kind.IMAGE)) & (kind != int(Kind.PADDING))).sum(1)
        return replace(
            self,
            tokens=replace(
                self.tokens,
                kind=self.tokens.kind[:, :columns],
                image=self.tokens.image[:, :columns],
            ),
            columns=columns,
            step=max(0, self.step - count),
            total=self.total - images,
            text=text,
            alive=tuple((layer, counts - images) for layer, counts in self.alive),
            numbers=each(self.numbers, lambda numbers: numbers.cropped(columns)),
            notes={key: values[:, :columns] for key, values in self.notes.items()},
            tail=self.tail - count,
        )

    def reindexed(self, rows: Callable[[Tensor], Tensor]) -> Ledger:
        """The ledger of other samples of the batch, as `rows` picks them."""
        tokens = replace(self.tokens, kind=rows(self.tokens.kind), image=rows(self.tokens.image))
        alive = tuple((layer, rows(counts)) for layer, counts in self.alive)
        notes = {key: rows(values) for key, values in self.notes.items()}
        return replace(
            self,
            tokens=tokens,
            total=rows(self.total),
            text=rows(self.text),
            alive=alive,
            numbers=each(self.numbers, lambda numbers: numbers.reindexed(rows)),
            notes=notes,
        )
