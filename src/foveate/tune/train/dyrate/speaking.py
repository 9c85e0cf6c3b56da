"""Kept tokens that speak for the dropped in a teacher-forced pass, as in cached decoding.

The prefill's cut compares hidden states, and its numbers hold in all layers from the prune layer
on. What leaves at a later step leaves every layer's cache by itself: it joins by that layer's keys,
and changes that layer's numbers, keys and values.

All of a layer's keys are there as soon as it runs, and which tokens leave when is known before. So
a layer goes through the steps at which tokens leave, and each of its rows attends to the keys,
values and numbers that its own step has.

Shapes: B samples, T columns of prompt and answer, S steps, N visual tokens of the sample with the
most, K key-value heads, E numbers of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ....core.method import Method
from ....core.tokens import TokenMap
from ....core.view import View
from ....core.weighing import AtCut
from ....engine.attention.rows import replace_rows
from ....engine.cache.handing import spoken
from ....engine.cache.numbers import Numbers
from .attention import Span


def speaks(method: Method) -> bool:
    """Whether it weighs or averages."""
    return method.weigh is not None or method.merge is not None


@dataclass(frozen=True)
class Cut:
    """What the prefill's cut leaves.

    Attributes:
        hidden: what enters the prune layer (B T D); kept tokens may be means.
        numbers: for how many tokens each column speaks from there on, or None where each speaks for
            itself.
    """

    hidden: Tensor
    numbers: Numbers | None


def cut_by(method: Method, view: View, hidden: Tensor, alive: Bool[Tensor, "B N"]) -> Cut:
    """The prefill's cut as the engine makes it.

    Args:
        method: with the weights and the merge.
        view: before the prune layer in the prefill; it has been cut by no other.
        hidden: what enters the layer (B T D), prompts and answers.
        alive: which of `view.visual` stay.
    """
    counts = alive.sum(1)
    numbers = None
    if method.merge is not None:
        hidden = replace_rows(hidden, view.place(), alive, method.merge(view, alive, counts))
    if method.weigh is not None:
        found = method.numbers(method.weigh, view, alive, counts)
        ones = Numbers.ones(len(alive), hidden.shape[1], alive.device)
        numbers = ones.changed(view.visual, alive, found, method.weigh.strength)
    return Cut(hidden, numbers)


@dataclass(frozen=True)
class Held:
    """One layer's keys and values (B K T E) at some step, by column; and its numbers.

    Attributes:
        parts: keys and values, or keys alone.
        numbers: for how many tokens each column speaks, or None where each speaks for itself.
    """

    parts: tuple[Tensor, ...]
    numbers: Numbers | None

    def after(
        self,
        method: Method,
        tokens: TokenMap,
        columns: Int[Tensor, "B N"],
        before: Bool[Tensor, "B N"],
        alive: Bool[Tensor, "B N"],
    ) -> Held:
        """The same once tokens have left; no gradient goes through who joins whom.

        Args:
            method: with the weights and the merge.
            tokens: what every column is.
            columns: of the visual tokens; entries that were never alive may be anywhere.
            before: which of them were there.
            alive: which of them stay.
        """
        keys = self.parts[0]
        there = columns.clamp(max=tokens.kind.shape[1] - 1)  # fills may point into the answer
        old = self.numbers
        if old is None:
            old = Numbers.ones(len(alive), keys.shape[2], alive.device)
        visual = [_at(part, there) for part in self.parts]
        at = AtCut.of(
            visual[0].detach().flatten(2),
            there,
            alive,
            before & ~alive,
            tokens,
            old.of(there),
            lambda _: None,
        )
        found, counts = spoken(at, method, visual)
        parts = tuple(
            part if new is was else _put(part, there, alive, new)
            for part, was, new in zip(self.parts, visual, found, strict=True)
        )
        if counts is None or method.weigh is None:
            return Held(parts, self.numbers)
        return Held(parts, old.changed(there, alive, counts, method.weigh.strength))

    def shares(self) -> Float[Tensor, "B T"] | None:
        """What attention multiplies exp(product) of each column with: number ** strength."""
        return None if self.numbers is None else self.numbers.bias.exp()


def _at(part: Float[Tensor, "B K T E"], columns: Int[Tensor, "B N"]) -> Tensor:
    """What lies in these columns (B N K E)."""
    index = columns[:, None, :, None].expand(-1, part.shape[1], -1, part.shape[3])
    return part.gather(2, index).transpose(1, 2)


def _put(part: Tensor, columns: Tensor, real: Tensor, new: Tensor) -> Tensor:
    """`part` with `new` (B N K E) in those columns that are `real`."""
    heads = new.transpose(1, 2)
    place = torch.where(real, columns, part.shape[2])  # fills write into a spare last column
    index = place[:, None, :, None].expand(heads.shape)
    return torch.nn.functional.pad(part, (0, 0, 0, 1)).scatter(2, index, heads)[:, :, :-1]


@dataclass(frozen=True)
class Leaving:
    """When which visual tokens leave, from the prune layer on.

    Attributes:
        method: with the weights and the merge.
        tokens: what every column of the prompts is.
        columns: of the visual tokens.
        alive: which of them are there at each step.
        numbers: after the prefill's cut.
        prompt: columns of the prompts.
    """

    method: Method
    tokens: TokenMap
    columns: Int[Tensor, "B N"]
    alive: Bool[Tensor, "B S N"]
    numbers: Numbers | None
    prompt: int

    def spans(self, keys: Float[Tensor, "B K T E"], values: Tensor) -> Iterator[Span]:
        """For one layer: rows that attend to the same keys and values, and what those are."""
        steps = self.alive.shape[1]
        # leaves[t]: whether some sample loses a token before step t + 1.
        leaves = (self.alive[:, 1:] != self.alive[:, :-1]).any(2).any(0)
        first = [0, *(step for step in range(1, steps) if bool(leaves[step - 1]))]
        held = Held((keys, values), self.numbers)
        for number, step in enumerate(first):
            if step:
                before, alive = self.alive[:, step - 1], self.alive[:, step]
                held = held.after(self.method, self.tokens, self.columns, before, alive)
            # Row `prompt + t - 1` is that of step t. Rows before are the prompt's, of step 0.
            last = number + 1 == len(first)
            start = self.prompt + step - 1 if step else 0
            stop = None if last else self.prompt + first[number + 1] - 1
            yield Span(slice(start, stop), held.parts[0], held.parts[1], held.shares())
