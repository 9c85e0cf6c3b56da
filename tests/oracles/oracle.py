"""What dropping must equal: full length, nothing ever removed, dropped keys masked. One sample at a time, slow.

Written from the methods' definitions and the layers' weights alone; shares no code with the engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from oracles.speaking import Speaking, biases, images, places


def _unseen(column: int) -> Tensor:
    raise NotImplementedError("this oracle shows attention alone")


def _unseen_projection(which: str, column: int, rotated: bool) -> Tensor:
    raise NotImplementedError("this oracle shows attention alone")


@dataclass
class Situation:
    """What a chooser may look at before `layer` at `step`; columns are places in the unpadded sample."""

    layer: int
    step: int
    layers: int
    alive: list[int]
    total: int
    newest: int
    attention: Callable[
        ..., Tensor
    ]  # query column, back=1 -> (H C), of the layer so far back; 0 is the coming one
    image_of: list[int]  # per column, -1 for text
    side: int | None  # of the square grid of an image's tokens
    kinds: list[str]  # per column: system, image, instruction, response
    first: int  # first column that runs now
    memory: dict[Any, Any]  # the sample's, for choosers that remember
    state: Callable[[int], Tensor] = _unseen  # column that runs now -> (D), what enters the layer
    key: Callable[[int], Tensor] = _unseen  # column -> (K E), key in the layer before
    projected: Callable[[str, int, bool], Tensor] = _unseen_projection
    """"queries" or "keys", column that runs now, whether rotated -> (H E), in the coming layer."""


@dataclass(frozen=True)
class Mixed:
    """A choice with a merge: the columns that stay, and new states (D) for some of them."""

    keep: list[int]
    states: dict[int, Tensor]


Chooser = Callable[[Situation], list[int] | Mixed]


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Rotary embedding of (H T E), halves convention."""
    half = x.shape[-1] // 2
    turn = positions[:, None].double() * theta ** (-torch.arange(half).double() / half)
    cos, sin = turn.cos().to(x.dtype), turn.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


@dataclass
class Oracle:
    """A conversation with one sample. `feed` runs more tokens and returns their logits (T V)."""

    model: Any
    choosers: list[Chooser]
    side: int | None = None
    columns: int = 0
    step: int = 0
    images: int = 0
    image_of: list[int] = field(default_factory=list)
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    dropped: dict[int, set[int]] = field(default_factory=dict)
    kept: dict[tuple[int, int, int], int] = field(
        default_factory=dict
    )  # (call, step, layer) -> visual tokens
    calls: int = 0
    kinds: list[str] = field(default_factory=list)
    memory: dict[Any, Any] = field(default_factory=dict)
    speaking: list[Speaking | None] = field(default_factory=list)  # of each chooser, where given
    numbers: dict[int, dict[int, float]] = field(default_factory=dict)  # layer -> column -> number
    strength: float = 1.0

    def feed(self, embeds: Tensor, image_of: list[int]) -> Tensor:
        """Runs tokens `embeds` (T D); `image_of` numbers the images among them from 0, -1 for text."""
        decoder = self.model.model.language_model
        count, first = embeds.shape[0], self.columns
        self.step = self.step + 1 if first and count == 1 and image_of[0] < 0 else 0
        self.image_of += [i + self.images if i >= 0 else -1 for i in image_of]
        self._name(image_of, first == 0)
        self.images = max(self.image_of) + 1
        self.columns += count
        hidden, shares = embeds, []
        for index, layer in enumerate(decoder.layers):
            hidden = self._choose(index, layer, hidden, first, shares)
            hidden, looked = self._run(index, layer, hidden, first)
            shares.append(looked)
        self.calls += 1
        return self.model.lm_head(decoder.norm(hidden))

    def _name(self, image_of: list[int], opening: bool) -> None:
        """The kinds of new columns."""
        if self.step:
            self.kinds.append("response")
            return
        seen = not opening or all(i < 0 for i in image_of)
        for image in image_of:
            seen = seen or image >= 0
            self.kinds.append("image" if image >= 0 else "instruction" if seen else "system")

    def _alive(self, layer: int) -> list[int]:
        gone = self.dropped.setdefault(layer, set())
        return [c for c in range(self.columns) if self.image_of[c] >= 0 and c not in gone]

    def _choose(
        self, index: int, module: Any, hidden: Tensor, first: int, shares: list[Tensor]
    ) -> Tensor:
        layers = len(self.model.model.language_model.layers)
        speaking = self.speaking or [None] * len(self.choosers)
        for chooser, speaks in zip(self.choosers, speaking, strict=True):
            alive, entering = self._alive(index), hidden

            def attention(query: int, back: int = 1, entering: Tensor = entering) -> Tensor:
                assert index >= back
                seen = (
                    shares[index - back] if back else self._look(index, module, entering, first)[0]
                )
                return seen[:, query - first]

            seen = Situation(
                index,
                self.step,
                layers,
                alive,
                sum(i >= 0 for i in self.image_of),
                self.columns - 1,
                attention,
                self.image_of,
                self.side,
                self.kinds,
                first,
                self.memory,
                lambda column, hidden=hidden: hidden[column - first],
                lambda column: self.keys[index - 1][:, column],
                lambda which, column, rotated, hidden=hidden: self._projected(
                    module, hidden[column - first], column, which, rotated
                ),
            )
            self.memory["into"] = {}
            found = chooser(seen)
            keep = {
                *(found.keep if isinstance(found, Mixed) else found),
                self.columns - 1,
            }  # the last is the output
            before = hidden
            if isinstance(found, Mixed):
                rows = [found.states.get(first + row, old) for row, old in enumerate(hidden)]
                hidden = torch.stack(rows)
            if speaks is not None and any(c not in keep for c in alive):
                hidden = self._speak(speaks, index, layers, alive, keep, before, hidden, first)
            for layer in range(index, layers):
                self.dropped.setdefault(layer, set()).update(c for c in alive if c not in keep)
        self.kept[self.calls, self.step, index] = len(self._alive(index))
        return hidden

    def _projected(
        self, layer: Any, state: Tensor, column: int, which: str, rotated: bool
    ) -> Tensor:
        """Query or key (H E) of one token in a layer."""
        attn = layer.self_attn
        projection = attn.q_proj if which == "queries" else attn.k_proj
        heads = projection(layer.input_layernorm(state[None])).view(-1, 1, attn.head_dim)
        theta = self.model.config.text_config.rope_parameters["rope_theta"]
        return (rotate(heads, torch.tensor([column]), theta) if rotated else heads)[:, 0]

    def _speak(
        self, speaks: Speaking, index: int, layers: int, alive: list[int], keep: set[int],
        before: Tensor, hidden: Tensor, first: int,
    ) -> Tensor:  # fmt: skip
        """Numbers and means after a cut; what enters the layer then. `before` is what entered it before any merge."""
        groups = images(alive, self.image_of)
        if speaks.weigh == "clusters" and alive[0] >= first:
            groups = [alive]  # a method's own clusters may reach over several images
        for own in groups:
            image = self.image_of[own[0]]
            number = places(self.image_of, image)
            if own[0] >= first:
                hidden = self._speak_now(
                    speaks, index, layers, own, keep, number, before, hidden, first
                )
                continue
            for layer in range(index, layers):
                held = [c for c in self._alive(layer) if self.image_of[c] == image]
                kept, gone = [c for c in held if c in keep], [c for c in held if c not in keep]
                self._speak_cached(speaks, layer, kept, gone, number)
        return hidden

    def _speak_now(
        self, speaks: Speaking, index: int, layers: int, own: list[int], keep: set[int],
        number: dict[int, int], before: Tensor, hidden: Tensor, first: int,
    ) -> Tensor:  # fmt: skip
        """An image whose tokens run now: by hidden states, for this layer and all deeper ones."""

        def state(column: int) -> Tensor:
            return before[column - first]

        kept, gone = [c for c in own if c in keep], [c for c in own if c not in keep]
        old = {c: self.numbers.get(index, {}).get(c, 1.0) for c in own}
        joins = speaks.joins(kept, gone, number, self.side, state, self.memory["into"])
        if speaks.mean:
            hidden = hidden.clone()
            for c in kept:
                hidden[c - first] = state(c)
            for c, mean in speaks.means(kept, joins, old, state, state).items():
                hidden[c - first] = mean
        if speaks.weigh != "none" and kept:
            self.strength = speaks.strength
            new = speaks.numbers(kept, gone, joins, old)
            for layer in range(index, layers):
                self.numbers.setdefault(layer, {}).update(new)
        return hidden

    def _speak_cached(
        self, speaks: Speaking, layer: int, kept: list[int], gone: list[int], number: dict[int, int]
    ) -> None:
        """An image that only a layer's cache holds: by the layer's own keys, heads side by side."""
        keys, values = self.keys[layer], self.values[layer]

        def key(column: int) -> Tensor:
            return keys[:, column].flatten()

        def value(column: int) -> Tensor:
            return values[:, column].flatten()

        old = {c: self.numbers.get(layer, {}).get(c, 1.0) for c in (*kept, *gone)}
        joins = speaks.joins(kept, gone, number, self.side, key)
        if speaks.mean:
            new_keys = speaks.means(kept, joins, old, key, key)
            new_values = speaks.means(kept, joins, old, key, value)
            self.keys[layer], self.values[layer] = keys.clone(), values.clone()
            for c, mean in new_keys.items():
                self.keys[layer][:, c] = mean.view(keys.shape[0], -1)
                self.values[layer][:, c] = new_values[c].view(values.shape[0], -1)
        if speaks.weigh != "none" and kept:
            self.strength = speaks.strength
            self.numbers.setdefault(layer, {}).update(speaks.numbers(kept, gone, joins, old))

    def _run(self, index: int, layer: Any, hidden: Tensor, first: int) -> tuple[Tensor, Tensor]:
        shares, self.keys[index], self.values[index] = self._look(index, layer, hidden, first)
        group = shares.shape[0] // self.values[index].shape[0]
        mixed = (shares @ self.values[index].repeat_interleave(group, 0)).transpose(0, 1).flatten(1)
        hidden = hidden + layer.self_attn.o_proj(mixed)
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden)), shares

    def _look(
        self, index: int, layer: Any, hidden: Tensor, first: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attention (H T C), keys and values of a layer."""
        attn, config = layer.self_attn, self.model.config.text_config
        count, size = hidden.shape[0], attn.head_dim
        normed = layer.input_layernorm(hidden)
        positions = torch.arange(first, first + count)
        theta = config.rope_parameters["rope_theta"]

        def heads(projection: Any) -> Tensor:
            return projection(normed).view(count, -1, size).transpose(0, 1)

        queries = rotate(heads(attn.q_proj), positions, theta)
        keys, values = rotate(heads(attn.k_proj), positions, theta), heads(attn.v_proj)
        if first:
            keys, values = (
                torch.cat([self.keys[index], keys], 1),
                torch.cat([self.values[index], values], 1),
            )
        group = queries.shape[0] // keys.shape[0]
        products = queries @ keys.repeat_interleave(group, 0).transpose(1, 2) / math.sqrt(size)
        added = biases(self.numbers.get(index, {}), self.strength, self.columns)
        products = products + added.to(products)
        allowed = torch.arange(self.columns)[None] <= positions[:, None]
        for column in self.dropped[index]:
            allowed[:, column] = False
            if column >= first:
                allowed[column - first, column] = (
                    True  # its own row is read by nobody; keep it finite
                )
        return products.masked_fill(~allowed, -math.inf).softmax(-1), keys, values
