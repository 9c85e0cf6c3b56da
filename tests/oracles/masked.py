"""What dropping must equal, for any family: the model's own full-length forward, dropped keys hidden in every layer.

The plain model runs the whole conversation anew at each step, in eager mode, without a cache. Its own mask of every
layer (windows, images that see both ways) loses the columns that were dropped; rows of earlier steps keep the mask that
they ran with. Positions, DeepStack and the like are the model's own. Shares no code with the engine.

Kept tokens that speak for the dropped get a bias in the mask, and means at the layer's input. Where cached tokens join
others, by the keys of the forward before, numbers are handed on; means of cached keys cannot be put into a forward that
computes them anew, and are left to `oracle`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from foveate.engine.assumptions import cache_name
from oracles.oracle import Situation
from oracles.speaking import Speaking, biases, images, places

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
    speaking: list[Speaking | None] = field(default_factory=list)  # of each chooser, where given
    strength: float = 1.0
    numbers: dict[int, dict[int, float]] = field(default_factory=dict)  # layer -> column -> number
    added: dict[int, Tensor] = field(
        default_factory=dict
    )  # (C C) per layer: biases that rows ran with
    means: dict[int, dict[int, Tensor]] = field(
        default_factory=dict
    )  # layer -> column -> what enters
    keys: list[Tensor] = field(
        default_factory=list
    )  # (K C E) of every layer, of the forward before

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
                hidden = args[0] if args else kwargs["hidden_states"]
                self._choose(index, owners, hidden[0])
                kwargs = {
                    **kwargs,
                    "attention_mask": self._mask(index, kwargs["attention_mask"]),
                }
                if not self.means.get(index):
                    return args, kwargs
                hidden = hidden.clone()
                for column, mean in self.means[index].items():
                    hidden[0, column] = mean
                return (
                    ((hidden, *args[1:]), kwargs)
                    if args
                    else (args, {**kwargs, "hidden_states": hidden})
                )

            def after(module: Any, args: Any, output: Any, index: int = index) -> None:
                self.shares[index] = output[1][0]

            handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(layer.self_attn.register_forward_hook(after))
        try:
            whole = (
                DynamicCache()
            )  # of all keys, also where the model's own would hold a window of them
            given = {cache_name(self.model): whole} if any(self.speaking) else {}
            out = self.model(**self.inputs(self.answer), **given, use_cache=bool(given))
            logits: Tensor = out.logits[0]
            self.keys = [layer.keys[0] for layer in whole.layers]
        finally:
            for handle in handles:
                handle.remove()
        return logits[self.first :]

    def _choose(self, index: int, owners: list[int], hidden: Tensor) -> None:
        depth, newest = len(self.layers), len(owners) - 1
        speaking = self.speaking or [None] * len(self.choosers)
        for chooser, speaks in zip(self.choosers, speaking, strict=True):
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
            if speaks is not None and any(c not in keep for c in alive):
                self._speak(speaks, index, alive, keep, owners, hidden)
            for layer in range(index, depth):
                self.dropped.setdefault(layer, set()).update(c for c in alive if c not in keep)
        self.kept[self.step, index] = len(self._alive(index, owners))

    def _speak(
        self, speaks: Speaking, index: int, alive: list[int], keep: set[int], owners: list[int],
        hidden: Tensor,
    ) -> None:  # fmt: skip
        """Numbers and means after a cut; all of an image run now (the prompt), or none does."""
        for own in images(alive, owners):
            number = places(owners, owners[own[0]])
            now = own[0] >= self.first
            assert now or not speaks.mean, "means of cached keys are left to the other oracle"
            for layer in range(index, len(self.layers)):
                held = [c for c in self._alive(layer, owners) if c in number]
                kept, gone = [c for c in held if c in keep], [c for c in held if c not in keep]
                old = {c: self.numbers.get(layer, {}).get(c, 1.0) for c in held}

                def of(column: int, layer: int = layer, now: bool = now) -> Tensor:
                    return hidden[column] if now else self.keys[layer][:, column].flatten()

                joins = speaks.joins(kept, gone, number, self.side, of)
                if speaks.mean and layer == index:
                    self.means.setdefault(index, {}).update(speaks.means(kept, joins, old, of, of))
                if speaks.weigh != "none" and kept:
                    self.strength = speaks.strength
                    new = speaks.numbers(kept, gone, joins, old)
                    self.numbers.setdefault(layer, {}).update(new)

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
        numbers = self.numbers.get(index, {})
        added = biases(numbers, self.strength, len(allowed)).expand(allowed.shape).clone()
        if self.first:
            added[: self.first] = 0.0
            added[: self.first, : self.first] = self.added[index]
        self.added[index] = added
        return added.to(own)[None, None].masked_fill(~allowed, torch.finfo(own.dtype).min)
