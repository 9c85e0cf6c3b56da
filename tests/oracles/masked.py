"""What dropping must equal, for any family: the model's own full-length forward, dropped keys hidden in every layer.

The plain model runs the whole conversation anew at each step, in eager mode, without a cache. Its own mask of every
layer (windows, images that see both ways) loses the columns that were dropped; rows of earlier steps keep the mask that
they ran with. Positions, DeepStack and the like are the model's own. Shares no code with the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from oracles.oracle import Situation

Chooser = Callable[[Situation], list[int]]


@dataclass
class Masked:
    """A conversation with one sample. `feed` runs the prompt or one more word and returns the new logits (T V)."""

    model: Any
    layers: Any
    inputs: Callable[
        [list[int]], dict[str, Tensor]
    ]  # the words of the answer so far -> what the model is called with
    image_of: list[int]
    choosers: list[Chooser]
    side: int | None = None
    step: int = 0
    first: int = 0
    answer: list[int] = field(default_factory=list)
    dropped: dict[int, set[int]] = field(default_factory=dict)
    ran: dict[int, Tensor] = field(default_factory=dict)  # (C C) per layer: who has seen whom
    shares: dict[int, Tensor] = field(default_factory=dict)
    kept: dict[tuple[int, int], int] = field(default_factory=dict)  # (step, layer) -> visual tokens
    memory: dict[Any, Any] = field(default_factory=dict)

    @torch.no_grad()
    def feed(self, word: int | None = None) -> Tensor:
        if word is not None:
            self.answer.append(word)
            self.step += 1
        owners = self.image_of + [-1] * len(self.answer)
        self.first = 0 if word is None else len(owners) - 1
        handles: list[Any] = []
        for index, layer in enumerate(self.layers):

            def before(module: Any, args: Any, kwargs: Any, index: int = index) -> Any:
                self._choose(index, owners)
                return args, {
                    **kwargs,
                    "attention_mask": self._mask(index, kwargs["attention_mask"]),
                }

            def after(module: Any, args: Any, output: Any, index: int = index) -> None:
                self.shares[index] = output[1][0]

            handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(layer.self_attn.register_forward_hook(after))
        try:
            logits: Tensor = self.model(**self.inputs(self.answer), use_cache=False).logits[0]
        finally:
            for handle in handles:
                handle.remove()
        return logits[self.first :]

    def _choose(self, index: int, owners: list[int]) -> None:
        depth, newest = len(self.layers), len(owners) - 1
        for chooser in self.choosers:
            alive = self._alive(index, owners)
            total = sum(i >= 0 for i in owners)

            def attention(query: int, back: int = 1) -> Tensor:
                assert index >= back
                return self.shares[index - back][:, query]

            seen = Situation(
                index, self.step, depth, alive, total, newest, attention, owners, self.side, self._kinds(owners),
                self.first, self.memory,
            )  # fmt: skip
            keep = {*chooser(seen), newest}
            for layer in range(index, depth):
                self.dropped.setdefault(layer, set()).update(c for c in alive if c not in keep)
        self.kept[self.step, index] = len(self._alive(index, owners))

    def _alive(self, layer: int, owners: list[int]) -> list[int]:
        gone = self.dropped.setdefault(layer, set())
        return [c for c, owner in enumerate(owners) if owner >= 0 and c not in gone]

    def _kinds(self, owners: list[int]) -> list[str]:
        prompt = len(self.image_of)
        start = next((c for c, owner in enumerate(owners) if owner >= 0), 0)
        return [
            "response"
            if c >= prompt
            else "image"
            if owner >= 0
            else "system"
            if c < start
            else "instruction"
            for c, owner in enumerate(owners)
        ]

    def _mask(self, index: int, own: Tensor) -> Tensor:
        assert own.ndim == 4 and own.shape[0] == 1
        allowed = own[0, 0] == 0
        for column in self.dropped[index]:
            allowed[self.first :, column] = False
            allowed[column, column] = True  # its own row is read by nobody; keep it finite
        if self.first:
            allowed[: self.first] = False
            allowed[: self.first, : self.first] = self.ran[index]
        self.ran[index] = allowed
        return torch.zeros_like(own).masked_fill(~allowed, torch.finfo(own.dtype).min)
