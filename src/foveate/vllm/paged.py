"""Keys and values of one request in a layer's paged cache: read, written, and moved together.

vLLM's cache of a layer is (blocks, heads, tokens of a block, keys and values side by side). Writing
is the backend's own. Reading knows two layouts. `Paged.of` writes numbers into an empty cache and
looks which of the two gives them back, so that an unknown layout is refused and never misread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

Pair = tuple[Tensor, Tensor]  # keys and values, (S K E) each
Blocks = Callable[[Tensor], Pair]  # of a cache: keys and values of its blocks, (blocks K tokens E)


def _side_by_side(cache: Tensor) -> Pair:
    """A token's key, then its value: FlashAttention's."""
    keys, values = cache.chunk(2, dim=-1)
    return keys, values


def _keys_turned(cache: Tensor) -> Pair:
    """All keys of a block, turned (E, tokens), then all its values: the CPU's."""
    blocks, heads, tokens, both = cache.shape
    keys, values = cache.view(blocks, heads, 2 * tokens, both // 2).chunk(2, dim=2)
    return keys.view(blocks, heads, both // 2, tokens).transpose(2, 3), values


LAYOUTS: tuple[Blocks, ...] = (_side_by_side, _keys_turned)


class Paged:
    """Reads and writes the caches of a model's layers.

    Args:
        attentions: vLLM's attention of each layer.
        layout: how keys and values lie in a block.
    """

    def __init__(self, attentions: Sequence[Any], layout: Blocks) -> None:
        self.attentions = attentions
        self.layout = layout

    @staticmethod
    def of(attentions: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Paged:
        """For a model's layers.

        Raises:
            ValueError: the backend's cache lies in no known layout.
        """
        first = attentions[0]
        heads, size, tokens = first.num_kv_heads, first.head_size, 32
        made = torch.arange(2 * heads * size, device=device).view(2, heads, size)
        keys, values = (made % 251 + shift for shift in (0, 1000))
        slots = torch.tensor([tokens + 3, 2], device=device)
        for layout in LAYOUTS:
            cache = torch.zeros(2, heads, tokens, 2 * size, dtype=dtype, device=device)
            first.impl.do_kv_cache_update(first, keys.to(dtype), values.to(dtype), cache, slots)
            found = _at(layout(cache), slots, tokens)
            if all(
                bool((part == to.to(dtype)).all())
                for part, to in zip(found, (keys, values), strict=True)
            ):
                return Paged(attentions, layout)
        raise ValueError(
            f"methods that drop tokens while decoding move them in the KV cache, but that of "
            f"{first.attn_backend.get_name()} with {dtype} lies in a layout that foveate cannot read; use a method "
            "that decides in the prefill alone"
        )

    def read(self, layer: int, slots: Int[Tensor, S]) -> Pair:
        """Keys and values in these slots, of the heads of this rank."""
        cache = self.attentions[layer].kv_cache
        return _at(self.layout(cache), slots, cache.shape[2])

    def write(
        self, layer: int, slots: Int[Tensor, S], keys: Float[Tensor, "S K E"], values: Tensor
    ) -> None:
        """Puts keys and values into these slots."""
        attention = self.attentions[layer]
        attention.impl.do_kv_cache_update(
            attention, keys.contiguous(), values.contiguous(), attention.kv_cache, slots
        )


def _at(blocks: Pair, slots: Tensor, tokens: int) -> Pair:
    block, place = slots // tokens, slots % tokens
    keys, values = (part[block, :, place] for part in blocks)
    return keys, values
