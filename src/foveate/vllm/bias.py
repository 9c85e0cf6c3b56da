"""What a kept token weighs, inside vLLM: heads are a little wider, and a key carries its bias in the cache.

No kernel of vLLM's takes a bias per key. So queries, keys and values get further entries, as
`engine.attention.flash` explains: a query's are ones, a key's are its bias, a value's are zeros.
The bias is then part of the product. It lies in the cache beside the key, so it survives steps,
moves with its token, and costs no state of a request. Attention is the backend's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..engine.attention.flash import PARTS, widened, with_bias

WIDEST = 512  # no kernel takes wider heads


class WideHeads:
    """Widens the heads of one of vLLM's attention layers, before vLLM makes the cache.

    Args:
        attention: vLLM's attention of the layer.
        bias: gives the biases of so many rows, those that run (R), or None where all weigh alike.

    Raises:
        ValueError: the kernels could not be right with a bias, or take no wider heads.
    """

    def __init__(self, attention: Any, bias: Callable[[int], Tensor | None]) -> None:
        narrow = attention.head_size
        wide = wide_enough(attention)
        self.narrow, self.wide = narrow, wide
        self.scale: float = attention.impl.scale
        forward = attention.forward

        def widely(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **more: Any) -> Tensor:
            asked, keys, values = (
                part.reshape(len(part), -1, narrow) for part in (query, key, value)
            )
            given = bias(len(keys))
            given = keys.new_zeros(len(keys), dtype=torch.float32) if given is None else given
            parts = widened(
                asked[:, :, None],
                keys[:, :, None],
                values[:, :, None],
                given[:, None],
                self.scale,
                wide,
            )
            out = forward(*(part.flatten(1) for part in parts), *rest, **more)
            return out.view(len(query), -1, wide)[..., :narrow].flatten(1)

        attention.forward = widely
        attention.head_size = attention.head_size_v = attention.impl.head_size = wide

    def keys(self, keys: Float[Tensor, "S K E"], bias: Float[Tensor, S]) -> Float[Tensor, "S K W"]:
        """Keys as the cache has them, with their biases."""
        return with_bias(keys[:, :, None], bias[:, None], self.scale, self.wide)[:, :, 0]


def wide_enough(attention: Any) -> int:
    """The narrowest head that the layer's backend takes and that has room for a bias.

    Raises:
        ValueError: there is none, or products are capped, and a part of them would be capped too.
    """
    backend, narrow = attention.attn_backend, attention.head_size
    if getattr(attention.impl, "logits_soft_cap", None):
        raise ValueError(
            f"weigh= adds a bias to attention, which lies in the product, but this model caps its products at "
            f"{attention.impl.logits_soft_cap}; leave out weigh="
        )
    if attention.head_size_v != narrow:
        raise ValueError(
            f"weigh= needs heads with keys and values of one width; got {narrow} and {attention.head_size_v}; leave "
            "out weigh="
        )
    for wide in range(narrow + PARTS, WIDEST + 1):
        if backend.supports_head_size(wide):
            return wide
    raise ValueError(
        f"weigh= needs heads wider than {narrow}, which the backend {backend.get_name()} does not take; leave it out"
    )
