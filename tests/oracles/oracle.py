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


def _unseen(column: int) -> Tensor:
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
        for chooser in self.choosers:
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
            )
            found = chooser(seen)
            keep = {
                *(found.keep if isinstance(found, Mixed) else found),
                self.columns - 1,
            }  # the last is the output
            if isinstance(found, Mixed):
                rows = [found.states.get(first + row, old) for row, old in enumerate(hidden)]
                hidden = torch.stack(rows)
            for layer in range(index, layers):
                self.dropped.setdefault(layer, set()).update(c for c in alive if c not in keep)
        self.kept[self.calls, self.step, index] = len(self._alive(index))
        return hidden

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
        allowed = torch.arange(self.columns)[None] <= positions[:, None]
        for column in self.dropped[index]:
            allowed[:, column] = False
            if column >= first:
                allowed[column - first, column] = (
                    True  # its own row is read by nobody; keep it finite
                )
        return products.masked_fill(~allowed, -math.inf).softmax(-1), keys, values
