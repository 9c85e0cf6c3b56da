"""A KV cache that grows without copying itself at every token, and can lose tokens.

`transformers`' own `DynamicLayer` concatenates the whole cache at each step. `KeptLayer` writes
into a preallocated buffer that grows geometrically. It is useful with no method at all::

    model.generate(**inputs, cache=foveate.KeptCache(model.config))

Transformers before 5.24 calls the argument `past_key_values`. The engine puts such layers into any
empty `DynamicCache` it meets. Layers with a sliding window keep the whole past too: transformers'
mask then hides what lies before the window, by original positions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..assumptions import (
    CACHE_NAMES,
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    PreTrainedConfig,
)
from .ledger import Ledger
from .slots import Gather, Move, Slots

GROWTH = (
    1.5  # a full buffer grows by this factor: each token is copied about twice over its whole life
)
HEADROOM = 64  # slots that a fresh buffer has to spare
OUTSIDE = (
    "this cache was filled under foveate.apply, and nobody outside knows which of its tokens are left; "
    "go on inside `with foveate.apply(model, ...)` (no methods will do), or start from a new cache"
)


class KeptLayer(DynamicLayer):
    """One layer's keys and values (B H S D) in a buffer with room to spare.

    Attributes:
        keys, values: views of the slots in use.
        slots: which token lies where; kept up by the engine, None where the cache is used without
            one.
        ledger: what the engine knows of the whole batch; held by layer 0 alone.
        engaged: whether the engine is running the forward under way; kept for layer 0 alone.
        broken: whether a forward failed halfway, so that layers hold different tokens; kept for
            layer 0 alone.
        seen: tokens of the input so far, dropped ones included; what transformers counts positions
            from.
        most: columns that a static cache may hold (`cache/static.py`); None where it grows.
    """

    def __init__(self, most: int | None = None) -> None:
        super().__init__()
        self.most = most
        self.slots: Slots | None = None
        self.ledger: Ledger | None = None
        self.engaged = self.broken = False
        self._reset()

    def _reset(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._in_graph = False
        self.length = self.seen = 0
        self.is_initialized = False

    def take(
        self,
        keys: Float[Tensor, "B H Z D"],
        values: Float[Tensor, "B H Z E"],
        slots: Slots,
        ledger: Ledger | None,
        seen: int,
    ) -> None:
        """Goes on in buffers whose first slots are filled already."""
        self.lazy_initialization(keys, values)
        self._buffers = (keys, values)
        self.slots = slots
        self.ledger = ledger
        self.seen = seen
        self._show(slots.length)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Takes the type and device; the buffer comes with the first tokens."""
        self.dtype = key_states.dtype
        self.device = key_states.device
        self.is_initialized = True

    def update(
        self,
        key_states: Float[Tensor, "B H T D"],
        value_states: Float[Tensor, "B H T E"],
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Float[Tensor, "B H S D"], Float[Tensor, "B H S E"]]:
        """Appends tokens, and returns all keys and values in use.

        Raises:
            RuntimeError: tokens were dropped from this cache under `apply`, and the model now runs
                outside of it.
        """
        if (self.ledger is not None or self.broken) and not self.engaged:
            raise RuntimeError(OUTSIDE)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        count = key_states.shape[-2]
        if (
            torch.is_grad_enabled()
        ):  # whatever needs a gradient, queries alone say, keys must not change in place
            self._append_with_gradient(key_states, value_states)
        else:
            buffers = self._reserve(key_states, value_states, self.length + count)
            for buffer, new in zip(buffers, (key_states, value_states), strict=True):
                buffer[:, :, self.length : self.length + count] = new
            self._show(self.length + count)
        self.seen += count
        return self.keys, self.values  # type: ignore[return-value]

    def _append_with_gradient(self, keys: Tensor, values: Tensor) -> None:
        """Writing in place would break the graph of earlier steps, so wherever there may be one we
        concatenate.
        """
        self._in_graph = True
        if self.keys is not None and self.values is not None and self.length:
            keys = torch.cat([self.keys, keys], -2)
            values = torch.cat([self.values, values], -2)
        self.keys = keys
        self.values = values
        self._buffers = (keys, values)
        self.length = keys.shape[-2]

    def _in_place(self, buffer: Tensor) -> bool:
        """Whether the buffers may be written to: no graph may hold them, and inference mode did not
        freeze them.
        """
        graph = self._in_graph or torch.is_grad_enabled()
        return not graph and (torch.is_inference_mode_enabled() or not buffer.is_inference())

    def _reserve(self, keys: Tensor, values: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The buffers, with room for `length` slots."""
        old = self._buffers
        if old is not None and old[0].shape[-2] >= length and self._in_place(old[0]):
            return old
        size = (
            length + HEADROOM
            if old is None
            else max(length + HEADROOM, math.ceil(old[0].shape[-2] * GROWTH))
        )
        grown = tuple(
            new.new_empty((*new.shape[:2], size, new.shape[-1])) for new in (keys, values)
        )
        if old is not None:
            for fresh, full in zip(grown, old, strict=True):
                fresh[:, :, : self.length] = full[:, :, : self.length]
        self._buffers = (grown[0], grown[1])
        self._in_graph = False
        return self._buffers

    def _show(self, length: int) -> None:
        if self._buffers is not None:
            self.length = length
            self.keys, self.values = (b[:, :, :length] for b in self._buffers)

    def evict(self, slots: Slots, move: Move) -> None:
        """Closes the holes of an eviction that `Slots.kept` planned."""
        if self._buffers is None:
            return
        if not self._in_place(self._buffers[0]):
            self._buffers = (self._buffers[0].clone(), self._buffers[1].clone())
            self._in_graph = torch.is_grad_enabled()
        for buffer in self._buffers:
            shape = (buffer.shape[0], buffer.shape[1], move.source.shape[1], buffer.shape[-1])
            source = move.source.to(buffer.device)[:, None, :, None].expand(shape)
            target = move.target.to(buffer.device)[:, None, :, None].expand(shape)
            buffer.scatter_(2, target, buffer.gather(2, source))
        self._show(move.length)
        self.slots = slots

    def replace(
        self,
        place: Int[Tensor, "B N"],
        keys: Float[Tensor, "B N H D"],
        values: Float[Tensor, "B N H E"],
    ) -> None:
        """Writes keys and values of some slots anew; the slots of a sample are all different."""
        if self._buffers is None:
            return
        if not self._in_place(self._buffers[0]):
            self._buffers = (self._buffers[0].clone(), self._buffers[1].clone())
            self._in_graph = torch.is_grad_enabled()
        for buffer, new in zip(self._buffers, (keys, values), strict=True):
            heads = new.transpose(1, 2).to(buffer)
            index = place.to(buffer.device)[:, None, :, None].expand(heads.shape)
            buffer.scatter_(2, index, heads)
        self._show(self.length)

    def get_seq_length(self) -> int:
        """Tokens of the input so far.

        Dropped tokens count, so that positions are never renumbered.
        """
        return self.seen

    def reset(self) -> None:
        """Empties the layer."""
        self._reset()
        self.slots = None if self.slots is None else Slots()
        self.ledger, self.broken = None, False

    def crop(self, tokens_to_remove: int | Tensor) -> None:
        """Removes the last tokens; negative counts alone, as in transformers, whose older versions
        give a tensor.

        Raises:
            ValueError: a positive count.
            NotImplementedError: the crop would reach before the last drop; the cache is then as it
                was.
        """
        if tokens_to_remove > 0:
            raise ValueError(
                f"crop({tokens_to_remove}); expected a negative number of tokens to remove"
            )
        count = min(-int(tokens_to_remove), self.seen)
        if (
            self.ledger is not None
        ):  # of layer 0, the first to be cropped, so that all layers are or none
            self.ledger = self.ledger.cropped(count)
        if self.slots is not None:
            self.slots = self.slots.cropped(count)
        self._show(self.length - count)
        self.seen -= count

    def reorder_cache(self, beam_idx: Int[Tensor, B]) -> None:
        """Beam search: sample b becomes what sample `beam_idx[b]` was."""
        self._pick(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every sample."""
        self._pick(lambda t: t.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps some samples."""
        self._pick(lambda t: t[indices.to(t.device)])

    def _pick(self, rows: Gather) -> None:
        if self._buffers is not None:
            first, second = (rows(b[:, :, : self.length]) for b in self._buffers)
            if first.shape[0] == self._buffers[0].shape[0] and self._in_place(self._buffers[0]):
                self._buffers[0][:, :, : self.length], self._buffers[1][:, :, : self.length] = (
                    first,
                    second,
                )
            else:
                self._buffers, self._in_graph = (first, second), torch.is_grad_enabled()
            self._show(self.length)
        self.slots = None if self.slots is None else self.slots.reindexed(rows)
        self.ledger = None if self.ledger is None else self.ledger.reindexed(rows)


class KeptCache(DynamicCache):
    """A `DynamicCache` of `KeptLayer`: pass it as `cache`, with or without a method applied.

    Before transformers 5.24 the argument is called `past_key_values`.

    Args:
        config: the model's configuration; its text part gives the number of layers.

    Raises:
        TypeError: the model has layers that are not attention (linear attention, convolution).
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config=config)
        adopt(self)


def adopt(cache: Cache, layers: int | None = None, name: str = CACHE_NAMES[0]) -> None:
    """Turns an empty `DynamicCache` into a cache of `KeptLayer`, in place, so that whoever holds it
    keeps it.

    Args:
        cache: to be turned.
        layers: of the model's decoder; None for as many as the cache has.
        name: what the installed transformers calls the argument; errors use it.

    Raises:
        TypeError: the cache is of another kind (static, quantised, offloaded), or has special
            layers.
        ValueError: the cache is not empty, so that nobody can tell which of its tokens are visual.
    """
    if all(isinstance(layer, KeptLayer) for layer in cache.layers) and cache.layers:
        if layers not in (None, len(cache.layers)):
            raise ValueError(
                f"{name} has {len(cache.layers)} layers, but the model's decoder has {layers}; make it for "
                "this model: foveate.KeptCache(model.config)"
            )
        return
    if type(cache) not in (DynamicCache, KeptCache) or cache.offloading:
        raise TypeError(
            f"{name} is a {type(cache).__name__}{' with offloading' if cache.offloading else ''}; supported "
            "are DynamicCache and foveate.KeptCache. Pass one of these, or none."
        )
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    odd = {type(layer).__name__ for layer in cache.layers if type(layer) not in plain}
    if odd:
        raise TypeError(
            f"the cache has layers of type {', '.join(sorted(odd))}; supported is attention alone"
        )
    if cache.get_seq_length() > 0:
        raise ValueError(not_ours(name, cache))
    cache.layers = [KeptLayer() for _ in range(layers or len(cache.layers))]
    cache.layer_class_to_replicate = None if cache.layers else KeptLayer


def not_ours(name: str, cache: Cache) -> str:
    """What to say of a cache whose tokens the engine has not seen."""
    return (
        f"{name} already holds {cache.get_seq_length()} tokens that were not run under foveate.apply, so their kinds "
        "are unknown. Start the conversation inside apply, or from an empty cache."
    )
