"""A bias of the keys under flash attention, whose kernels take none: it is folded into the product.

Queries, keys and values get further entries. A query's are (1, 1, 0 ...), a key's are (h, l, 0 ...) with h + l = bias /
scale, and a value's are zeros. So scale x (q.k) grows by the bias, with the scale of the narrow head. The output's
further entries are zeros and are cut off. Kernels want head sizes that are multiples of 8, equal for keys and values.

Precision: a key in bfloat16 has 8 bits, which would round a bias of 6 by up to 0.016. Therefore the bias is split: h is
what bfloat16 can hold, and l is the rest, rounded to the key's type. At most 2^-17 of the bias is lost, or 5e-5 of 6.4
(the log of 600 tokens); the kernel adds in float32.

Cost: keys and values of the whole cache are copied in every layer that holds such tokens, in every step. Head sizes of
64 and 128 become 72 and 136, for which a kernel may take its next larger tile.

Mechanism: transformers looks up the function that attends by the name in the attention module's configuration, and
anyone may register such a function. While a layer with such tokens runs, its attention module has a `BiasedConfig` in
place of its configuration. This names `attend_biased`, carries the bias, and is like the true one in all else.
`attend_biased` puts the true one back, then calls the function that the true one names. Nothing else sees the change:
the model's own configuration, other layers and other models keep their names.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..assumptions import AttentionInterface

NAME = "foveate_biased_flash"
STEP = 8  # kernels take heads of a multiple of this
WIDEST = 256  # and no wider ones
PARTS = 2  # of a bias: what bfloat16 holds of it, and the rest


class BiasedConfig:
    """An attention's configuration while its layer runs with a bias; it stands in the attention's `config`.

    Args:
        attention: of the layer that is about to run.
        bias: what is added to scaled products with each key that it will hold, (B S).
    """

    def __init__(self, attention: Any, bias: Float[Tensor, "B S"]) -> None:
        self.attention = attention
        self.true = attention.config
        self.bias = bias
        self._attn_implementation = NAME
        attention.config = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.true, name)

    def put_back(self) -> bool:
        """Gives the attention its configuration again. Returns whether this one was still there: nobody used it."""
        waiting = self.attention.config is self
        if waiting:
            self.attention.config = self.true
        return waiting


def attend_biased(
    module: Any,
    query: Float[Tensor, "B H R E"],
    key: Float[Tensor, "B K S E"],
    value: Float[Tensor, "B K S V"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "B R H V"], Any]:
    """transformers' attention function for a module whose configuration is a `BiasedConfig`.

    Raises:
        ValueError: the kernel could not be right with a bias.
    """
    config: BiasedConfig = module.config
    config.put_back()
    reason = why_not(query.shape[-1], kwargs.get("softcap"))
    if reason is not None:
        raise ValueError(
            f"this cache's tokens speak for others that have left, which attention has to be told by a bias; {reason}"
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    wide = widened(query, key, value, config.bias, scaling)
    attend = AttentionInterface()[module.config._attn_implementation]
    out, shares = attend(module, *wide, attention_mask, scaling=scaling, **kwargs)
    return out[..., : value.shape[-1]], shares


AttentionInterface.register(NAME, attend_biased)


def widened(
    query: Float[Tensor, "B H R E"],
    key: Float[Tensor, "B K S E"],
    value: Float[Tensor, "B K S V"],
    bias: Float[Tensor, "B S"],
    scaling: float,
) -> tuple[Float[Tensor, "B H R W"], Float[Tensor, "B K S W"], Float[Tensor, "B K S W"]]:
    """Queries, keys and values with the bias folded in, all equally wide."""
    more = _wide(query.shape[-1]) - query.shape[-1]
    whole = bias.to(key.device).float() / scaling
    high = whole.to(
        torch.bfloat16
    ).float()  # every dtype that a kernel may cast to holds it exactly
    keys = key.new_zeros((*key.shape[:-1], more))
    keys[..., :PARTS] = torch.stack([high, whole - high], -1)[:, None].to(key)
    ones = query.new_zeros((*query.shape[:-1], more))
    ones[..., :PARTS] = 1
    values = value.new_zeros((*value.shape[:-1], query.shape[-1] + more - value.shape[-1]))
    return (
        torch.cat([query, ones], -1),
        torch.cat([key, keys], -1),
        torch.cat([value, values], -1),
    )


def why_not(head: int, softcap: float | None) -> str | None:
    """Why flash attention could not be right with a bias, and what to do; None if it could.

    Args:
        head: width of a head.
        softcap: what the decoder squeezes its products into, if it does.
    """
    instead = "call model.set_attn_implementation('sdpa')"
    if softcap is not None:
        return (
            f"the decoder caps its products at {softcap}, and flash attention, to which the bias is a part of the "
            f"product, would cap it too; {instead}"
        )
    if _wide(head) > WIDEST:
        return (
            f"flash attention takes heads of up to {WIDEST}, and one of {head} with a bias is {_wide(head)} wide; "
            f"{instead}"
        )
    return None


def _wide(head: int) -> int:
    """Width of a head with room for the bias."""
    return -(-(head + PARTS) // STEP) * STEP
