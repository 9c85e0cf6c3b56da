"""Decode steps over buffers of a fixed size, so that they can be compiled.

`generate(cache_implementation="static")` makes a `StaticCache`. It compiles the decode step on
devices where that is worth it, and never the prefill. So the engine prunes the prefill as ever, in
layers that grow (`cache/layer.py`). Then it *freezes* them: it lays each layer's keys and values
into a buffer of the layer's own size. The next prompt *thaws* them.

Layers hold different tokens, but transformers makes one mask for all: over columns, as if nothing
had been dropped. A layer's own mask is a gather of it, by the column that lies in each slot. Slots
that decoding will fill have their columns from the start. So one table, made once a prefill, says
for all steps what a layer may see: causal order, padding and ragged samples included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..assumptions import Cache, StaticCache, StaticLayer
from .layer import OUTSIDE, KeptLayer, not_ours
from .ledger import Ledger
from .numbers import Numbers
from .slots import Slots

SIZES = 16  # at most so many sizes of a layer's buffer, for one size of the static cache
STEP = 8  # slots come in multiples of this, as kernels like them


@dataclass(frozen=True, eq=False)
class Sight:
    """What the slots of a frozen layer hold, now and later. Layers that hold the same share it.

    Attributes:
        columns: of each slot; 0 where it has none.
        real: which slots have a column: all but fills, and room that rounding up has left.
        bias: what attention adds to products with each key, in the model's type; or None.
    """

    columns: Int[Tensor, "B S"]
    real: Bool[Tensor, "B S"]
    bias: Float[Tensor, "B S"] | None

    @staticmethod
    def of(slots: Slots, numbers: Numbers | None, size: int, most: int, keys: Tensor) -> Sight:
        """Of a buffer whose first slots are `slots`; the columns after them come next.

        Args:
            slots: of the layer after its prefill.
            numbers: of the layer.
            size: slots of the buffer (S).
            most: columns that the cache may hold.
            keys: of the layer (B H . D): tell batch, type and device.
        """
        columns = slots.with_run(size - slots.length).columns(len(keys), keys.device)
        columns = torch.where(columns < most, columns, -1)
        bias = None if numbers is None else numbers.biases(columns).to(keys)
        made = Sight(columns.clamp(min=0), columns >= 0, bias)
        for part in made.parts():
            torch._dynamo.mark_static_address(part)
        return made

    def mask(self, given: Tensor) -> Tensor:
        """The mask over slots (B 1 T S) that a mask over columns (b 1 T C) comes to.

        It is bool or additive as that is, but always additive with a bias.
        """
        shape = (self.columns.shape[0], 1, given.shape[2], self.columns.shape[1])
        index = self.columns[:, None, None].expand(shape)
        found = given.expand(shape[0], -1, -1, -1).gather(3, index)
        seen = self.real[:, None, None] & (found if found.dtype == torch.bool else found == 0)
        if self.bias is None and found.dtype == torch.bool:
            return seen
        kind = found.dtype if self.bias is None else self.bias.dtype
        added = torch.zeros_like(seen, dtype=kind)
        if self.bias is not None:
            added = added + self.bias[:, None, None]
        return added.masked_fill(~seen, torch.finfo(kind).min)

    def parts(self) -> list[Tensor]:
        """Its tensors."""
        return [self.columns, self.real] + ([] if self.bias is None else [self.bias])


class FrozenLayer(StaticLayer):
    """One layer's keys and values (B H S D) while decode steps run, S fixed.

    Attributes:
        sight: what its slots hold; None where they are simply all columns in order.
        first: whether it is the first layer of those that share the sight.
        slots: which token lay where when it was frozen.
        ledger: what the engine knew of the batch then; held by layer 0 alone.
        most: columns that the cache may hold.
        written: slots in use, as a tensor of no dimension.
        ahead: by how many the columns so far exceed those, likewise.
        begun: slots in use when it was frozen.
        engaged: whether the `apply` that froze it is still on.
    """

    def __init__(
        self, kept: KeptLayer, most: int, size: int, sight: Sight | None, first: bool
    ) -> None:
        super().__init__(max_cache_len=size)
        keys, values = kept.keys, kept.values
        if keys is None or values is None or kept.slots is None:
            raise ValueError("this layer has run nothing that could be frozen")
        self.sight = sight
        self.first = first
        self.slots = kept.slots
        self.ledger: Ledger | None = kept.ledger
        self.most = most
        self.begun = kept.length
        self.engaged = True
        self.device = keys.device
        self.batch_size = len(keys)
        self.keys, self.values = (_laid(part, size) for part in (keys, values))
        self.written = torch.tensor(kept.length, dtype=torch.long, device=self.device)
        self.ahead = torch.tensor(kept.seen - kept.length, dtype=torch.long, device=self.device)
        for part in (self.keys, self.values, self.written, self.ahead):
            torch._dynamo.mark_static_address(part)
        self.is_initialized = True

    def update(
        self,
        key_states: Float[Tensor, "B H T D"],
        value_states: Float[Tensor, "B H T E"],
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Float[Tensor, "B H S D"], Float[Tensor, "B H S E"]]:
        """Writes tokens into the next slots, and returns all slots; masks hide those still empty.

        Raises:
            RuntimeError: the model now runs outside of the `apply` that filled the cache.
        """
        if not self.engaged:
            raise RuntimeError(OUTSIDE)
        count = key_states.shape[-2]
        place = torch.arange(count, device=self.device) + self.written
        self.written.add_(count)
        self.keys.index_copy_(2, place, key_states)
        self.values.index_copy_(2, place, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that a mask covers, and the first of them: all that the cache may hold."""
        return self.most, 0

    def get_seq_length(self) -> Any:
        """Tokens of the input so far, dropped ones included: a tensor, as in transformers."""
        return self.written + self.ahead

    def get_max_length(self) -> int:
        """Columns that the cache may hold."""
        return self.most

    def steps(self) -> int:
        """Tokens written since it was frozen; the host waits for the device."""
        return int(self.written) - self.begun

    def crop(self, tokens_to_remove: int | Tensor) -> None:
        """Takes back the last tokens of the answer; negative counts alone, as in transformers.

        Raises:
            ValueError: a positive count.
            NotImplementedError: fewer have been written since the prefill.
        """
        count = -int(tokens_to_remove)
        if count < 0:
            raise ValueError(f"crop({-count}); expected a negative number of tokens to remove")
        if count and count > self.steps():
            raise NotImplementedError(
                f"cannot take back {count} tokens of a static cache: only {self.steps()} came after the prompt; "
                "take back fewer, or use a dynamic cache"
            )
        self.written.sub_(count)

    def reset(self) -> None:
        """Empties the layer."""
        self.ledger = None
        self.begun = 0
        self.written.zero_()
        self.ahead.zero_()

    def reorder_cache(self, beam_idx: Int[Tensor, B]) -> None:
        """Beam search: sample b becomes what sample `beam_idx[b]` was, at the same addresses."""

        def rows(values: Tensor) -> Tensor:
            return values.index_select(0, beam_idx.to(values.device))

        shared = [] if self.sight is None or not self.first else self.sight.parts()
        for part in (self.keys, self.values, *shared):
            part.copy_(rows(part))
        self.slots = self.slots.reindexed(rows)
        self.ledger = None if self.ledger is None else self.ledger.reindexed(rows)


def steps_over(cache: Any, given: Tensor | None) -> bool:
    """Whether a call with these ids, or embeddings, is a decode step over a frozen cache."""
    if not isinstance(cache, StaticCache) or given is None or given.shape[1] != 1:
        return False
    first = cache.layers[0]
    return isinstance(first, FrozenLayer) and first.ledger is not None


def make_ready(cache: Cache, layers: int, name: str) -> None:
    """Makes a static cache ready for a prompt: its layers grow until the prefill has ended.

    Args:
        cache: an empty `StaticCache`, or a frozen one.
        layers: of the model's decoder.
        name: what the installed transformers calls the argument; errors use it.

    Raises:
        TypeError: it is offloaded, or has layers with sliding windows.
        ValueError: it holds tokens that the engine has not seen, or is of another model.
    """
    if len(cache.layers) != layers:
        raise ValueError(
            f"{name} has {len(cache.layers)} layers, but the model's decoder has {layers}; make it for this model"
        )
    if all(isinstance(layer, KeptLayer) for layer in cache.layers):
        return
    if all(isinstance(layer, FrozenLayer) for layer in cache.layers):
        frozen: FrozenLayer = cache.layers[0]
        fresh = frozen.ledger is None
        steps = 0 if fresh else frozen.steps()
        cache.layers = [
            KeptLayer(layer.most) if fresh else _thawed(layer, steps) for layer in cache.layers
        ]
        return
    odd = {type(layer).__name__ for layer in cache.layers if type(layer) is not StaticLayer}
    if odd or cache.offloading:
        raise TypeError(
            f"{name} is a StaticCache {'with offloading' if cache.offloading else 'of ' + ', '.join(sorted(odd))}; "
            "supported under foveate.apply are static layers of full attention on the model's device. "
            "Leave out cache_implementation, or pass a DynamicCache"
        )
    if bool(cache.get_seq_length() > 0):
        raise ValueError(not_ours(name, cache))
    cache.layers = [KeptLayer(layer.max_cache_len) for layer in cache.layers]


def freeze(cache: Cache, sizes: dict[int, list[int]]) -> None:
    """Lays what the layers of a static cache hold into buffers of fixed sizes.

    A layer that lost tokens is so much shorter than the cache would be without it, rounded up to a
    sixteenth. It never becomes shorter again, so one size of the cache has few graphs: at most
    `SIZES` for each group of layers that hold the same.

    Args:
        cache: after a prefill.
        sizes: of the layers' buffers, by the columns that the cache may hold; changed here.
    """
    kept: list[KeptLayer] = cache.layers
    most, ledger = kept[0].most, kept[0].ledger
    if most is None or ledger is None:
        raise ValueError("only a static cache that was filled under foveate.apply can be frozen")
    before = sizes.setdefault(most, [0] * len(kept))
    numbers = ledger.numbers or (None,) * len(kept)
    made: dict[Any, Sight | None] = {}
    frozen = []
    for index, (layer, weights) in enumerate(zip(kept, numbers, strict=True)):
        slots = layer.slots or Slots()
        if layer.keys is None:
            raise ValueError(f"layer {index} has run nothing that could be frozen")
        size = max(before[index], _rounded(slots.length + most - ledger.columns, most))
        before[index] = size
        key = (slots.key, id(weights), size, layer.device)
        first = key not in made
        if first:
            plain = slots.untouched and weights is None and size == most
            made[key] = None if plain else Sight.of(slots, weights, size, most, layer.keys)
        frozen.append(FrozenLayer(layer, most, size, made[key], first))
    cache.layers = frozen


def stepped(ledger: Ledger, steps: int) -> Ledger:
    """The ledger after so many decode steps in which nothing was dropped."""
    return replace(
        ledger,
        columns=ledger.columns + steps,
        step=ledger.step + steps,
        text=ledger.text + steps,
        tail=ledger.tail + steps,
    )


def _thawed(layer: FrozenLayer, steps: int) -> KeptLayer:
    """The layer that grows again, in the same buffer."""
    slots = layer.slots.with_run(steps)
    ledger = None if layer.ledger is None else stepped(layer.ledger, steps)
    made = KeptLayer(layer.most)
    made.take(layer.keys, layer.values, slots, ledger, seen=slots.start + slots.tail)
    return made


def _rounded(slots: int, most: int) -> int:
    """So many slots, rounded up to one of `SIZES` sizes."""
    unit = STEP * -(-most // (STEP * SIZES))
    return min(most, unit * -(-slots // unit))


def _laid(part: Float[Tensor, "B H S D"], size: int) -> Float[Tensor, "B H Z D"]:
    """Keys or values at the beginning of a buffer of `size` slots; the others are zeros."""
    buffer = part.new_zeros((*part.shape[:2], size, part.shape[3]))
    buffer[:, :, : part.shape[2]] = part.detach()
    return buffer
