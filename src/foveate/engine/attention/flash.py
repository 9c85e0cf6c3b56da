"""A bias of the keys under flash attention, whose kernels take none: it is folded into the product.

Queries, keys and values get further entries. A query's are (1, 1, 0 ...), a key's are (h, l, 0 ...)
with h + l = bias / scale, and a value's are zeros. So scale x (q.k) grows by the bias, with the
scale of the narrow head. The output's further entries are zeros and are cut off. Kernels want head
sizes that are multiples of 8, equal for keys and values.

Precision: a key in bfloat16 has 8 bits, which would round a bias of 6 by up to 0.016. Therefore the
bias is split: h is what bfloat16 can hold, and l is the rest, rounded to the key's type. At most
2^-17 of the bias is lost, or 5e-5 of 6.4 (the log of 600 tokens); the kernel adds in float32.

Cost: keys and values of the whole cache are copied in every layer that holds such tokens, in every
step. Head sizes of 64 and 128 become 72 and 136, for which a kernel may take its next larger tile.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

STEP = 8  # kernels take heads of a multiple of this
WIDEST = 256  # and no wider ones
PARTS = 2  # of a bias: what bfloat16 holds of it, and the rest


def widened(
    query: Float[Tensor, "B H R E"],
    key: Float[Tensor, "B K S E"],
    value: Float[Tensor, "B K S V"],
    bias: Float[Tensor, "B S"],
    scaling: float,
    wide: int | None = None,
) -> tuple[Float[Tensor, "B H R W"], Float[Tensor, "B K S W"], Float[Tensor, "B K S W"]]:
    """Queries, keys and values with the bias folded in, all equally wide.

    `wide` is that width; by default the least that flash attention takes.
    """
    wide = _wide(query.shape[-1]) if wide is None else wide
    ones = query.new_zeros((*query.shape[:-1], wide - query.shape[-1]))
    ones[..., :PARTS] = 1
    values = value.new_zeros((*value.shape[:-1], wide - value.shape[-1]))
    return (
        torch.cat([query, ones], -1),
        with_bias(key, bias, scaling, wide),
        torch.cat([value, values], -1),
    )


def with_bias(
    key: Float[Tensor, "B K S E"], bias: Float[Tensor, "B S"], scaling: float, wide: int
) -> Float[Tensor, "B K S W"]:
    """Keys of width `wide` with the bias folded in."""
    whole = bias.to(key.device).float() / scaling
    high = whole.to(
        torch.bfloat16
    ).float()  # every dtype that a kernel may cast to holds it exactly
    keys = key.new_zeros((*key.shape[:-1], wide - key.shape[-1]))
    keys[..., :PARTS] = torch.stack([high, whole - high], -1)[:, None].to(key)
    return torch.cat([key, keys], -1)


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
