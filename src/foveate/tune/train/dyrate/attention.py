"""Attention under a mask of keys that has a gradient (DynamicViT's form, 2106.02034, eq. 11)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ....engine.assumptions import AttentionInterface
from ....engine.attention.biased import LentConfig

_NAME = "foveate_soft_keys"


def soft_key_attention(
    queries: Float[Tensor, "B H Q D"],
    keys: Float[Tensor, "B K S D"],
    values: Float[Tensor, "B K S E"],
    scaling: float,
    seen: Bool[Tensor, "B Q S"],
    weight: Float[Tensor, "B Q S"],
    softcap: float | None = None,
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
        softcap: c squeezes products x into c tanh(x / c), or None.

    Returns:
        The heads' outputs, a row of them for each query.
    """
    batch, _, rows, _ = queries.shape
    # (B K G Q D): the G = H / K query heads that share a key-value head, so that no key is copied.
    grouped = queries.reshape(batch, keys.shape[1], -1, rows, queries.shape[-1]).float()
    products = torch.einsum("bkgqd,bksd->bkgqs", grouped, keys.float()) * scaling
    if softcap is not None:
        products = softcap * torch.tanh(products / softcap)
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
    layers: Iterable[Any],
    see: Callable[[Any], Tensor],
    weight: Float[Tensor, "B T T"],
    spans: Spans = one_span,
) -> Iterator[None]:
    """Within it, layers attend under `weight`, to what `spans` makes of their keys and values.

    Their own attention comes back at the end.

    Args:
        layers: of the decoder.
        see: from the mask that a layer is called with to which keys each row may see (B T T).
        weight: of each key, for each row.
        spans: of a layer's keys and values.
    """
    AttentionInterface.register(_NAME, _attend_softly)

    def lend(layer: Any, _: Any, kwargs: dict[str, Any]) -> None:
        _SoftConfig(layer.self_attn, see(kwargs.get("attention_mask")), weight, spans)

    handles = [layer.register_forward_pre_hook(lend, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _SoftConfig(LentConfig):
    """An attention's configuration while its layer runs with soft keys; arguments as above."""

    def __init__(self, attention: Any, seen: Tensor, weight: Tensor, spans: Spans) -> None:
        super().__init__(attention, _NAME)
        self.seen = seen
        self.weight = weight
        self.spans = spans


def _attend_softly(
    module: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *_: Any,
    scaling: float,
    softcap: float | None = None,
    **__: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function for a module whose configuration is a `_SoftConfig`."""
    config: _SoftConfig = module.config
    config.put_back()
    seen, weight = config.seen.to(q.device), config.weight.to(q.device)
    out = []
    for span in config.spans(k, v):
        mine = weight[:, span.rows]
        if span.shares is not None:
            mine = mine * span.shares[:, None]
        rows = q[:, :, span.rows]
        out.append(
            soft_key_attention(
                rows, span.keys, span.values, scaling, seen[:, span.rows], mine, softcap
            )
        )
    return torch.cat(out, 1), None
