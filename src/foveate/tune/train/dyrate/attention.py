"""Attention under a mask of keys that has a gradient (DynamicViT's form, 2106.02034, eq. 11)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import AttentionInterface

_NAME = "foveate_soft_keys"


def soft_key_attention(
    queries: Float[Tensor, "B H Q D"],
    keys: Float[Tensor, "B K S D"],
    values: Float[Tensor, "B K S E"],
    scaling: float,
    seen: Bool[Tensor, "B Q S"],
    weight: Float[Tensor, "B Q S"],
) -> Float[Tensor, "B Q H E"]:
    """A_ij = exp(s_ij - max) w_ij / sum_j exp(s_ij - max) w_ij, over the keys that row i may see.

    At weights of 0 and 1 this is attention over the keys of weight 1; and d A / d w is finite at 0,
    where an additive mask of -inf has none.

    Args:
        queries: of all heads.
        keys, values: of the key-value heads, each of which serves H / K query heads in a row.
        scaling: of the products.
        seen: which keys a row may see at all.
        weight: w above, the same for all heads.

    Returns:
        The heads' outputs, a row of them for each query.
    """
    batch, _, rows, _ = queries.shape
    # (B K G Q D): the G = H / K query heads that share a key-value head, so that no key is copied.
    grouped = queries.reshape(batch, keys.shape[1], -1, rows, queries.shape[-1]).float()
    products = torch.einsum("bkgqd,bksd->bkgqs", grouped, keys.float()) * scaling
    products = products.masked_fill(~seen[:, None, None], -torch.inf)
    # The maximum only keeps exp in range: it cancels, so it needs no gradient. A row that sees
    # nothing has -inf, which would give nan.
    top = products.amax(-1, keepdim=True).nan_to_num(neginf=0.0).detach()
    shares = (products - top).exp() * weight[:, None, None]
    shares = shares / shares.sum(-1, keepdim=True).clamp(min=1e-30)
    out = torch.einsum("bkgqs,bkse->bkgqe", shares, values.float())
    # (B K G Q E) to (B H Q E) to (B Q H E)
    return out.flatten(1, 2).transpose(1, 2).to(values.dtype)


@dataclass(frozen=True)
class Span:
    """Rows of a layer that attend to the same keys and values.

    Attributes:
        rows: which.
        keys: (B K T D).
        values: (B K T E).
        shares: what each key's weight is multiplied with (B T), or None.
    """

    rows: slice
    keys: Tensor
    values: Tensor
    shares: Tensor | None = None


Spans = Callable[[Tensor, Tensor], Iterable[Span]]  # of a layer's keys and values


def one_span(keys: Tensor, values: Tensor) -> Iterable[Span]:
    """All rows attend to what the layer gives."""
    return (Span(slice(None), keys, values),)


@contextmanager
def soft_keys(
    decoder: Any,
    seen: Bool[Tensor, "B T T"],
    weight: Float[Tensor, "B T T"],
    spans: Spans = one_span,
) -> Iterator[None]:
    """Within it, the decoder's layers attend under `weight`, to what `spans` makes of their keys and
    values.

    Its own attention comes back at the end.
    """

    def attend(
        module: Any, q: Tensor, k: Tensor, v: Tensor, *_: Any, scaling: float, **__: Any
    ) -> tuple[Tensor, None]:
        out = []
        for span in spans(k, v):
            mine = weight[:, span.rows]
            if span.shares is not None:
                mine = mine * span.shares[:, None]
            out.append(
                soft_key_attention(
                    q[:, :, span.rows], span.keys, span.values, scaling, seen[:, span.rows], mine
                )
            )
        return torch.cat(out, 1), None

    AttentionInterface.register(_NAME, attend)
    before = decoder.config._attn_implementation
    decoder.config._attn_implementation_internal = _NAME
    try:
        yield
    finally:
        decoder.config._attn_implementation_internal = before
