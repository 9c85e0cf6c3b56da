"""Attention masks in the form each backend takes, from who may see whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_mask

SUPPORTED = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")
STATIC = ("sdpa", "eager")  # those that take any mask, and so a static cache


@dataclass(frozen=True)
class OwnMask:
    """Who sees whom by the family's own rule: sliding windows, images that see both ways. Over
    original columns.

    Attributes:
        seen: rows of the forward under way against all columns so far; b = 1 or B.
        first: column of the first row.
    """

    seen: Bool[Tensor, "b T C"]
    first: int

    def between(
        self, queries: Int[Tensor, "B R"], keys: Int[Tensor, "B S"]
    ) -> Bool[Tensor, "B R S"]:
        """The entries of some columns."""
        at = (queries - self.first).clamp(min=0)[:, :, None].to(self.seen.device)
        rows = self.seen.expand(queries.shape[0], -1, -1).gather(
            1, at.expand(-1, -1, self.seen.shape[2])
        )
        columns = keys.clamp(min=0)[:, None].to(self.seen.device).expand(-1, queries.shape[1], -1)
        return rows.gather(2, columns).to(queries.device)


def may_see(
    queries: Int[Tensor, "B R"],
    keys: Int[Tensor, "B S"],
    real: Bool[Tensor, "B C"] | None,
    own: OwnMask | None = None,
) -> Bool[Tensor, "B R S"]:
    """Causal by column, or as the family's own mask says; fills and padding are never seen, fills
    themselves see all.

    (A fill's row is unused.)
    """
    if own is None:
        seen = (keys >= 0)[:, None] & (keys[:, None] <= queries[:, :, None])
    else:
        seen = (keys >= 0)[:, None] & own.between(queries, keys)
    if real is not None:
        seen = seen & real.gather(1, keys.clamp(min=0))[:, None]
    return seen | (queries < 0)[:, :, None]


def own_mask(given: Any, first: int) -> OwnMask | None:
    """The mask that a decoder gives its layer; None where it gives none: all is causal.

    Args:
        given: bool or additive (b 1 T C), or flex attention's blocks, which are written out here.
        first: column of the first row.
    """
    if isinstance(given, BlockMask):
        batch, _, rows, columns = given.shape
        device = str(given.kv_num_blocks.device)
        return OwnMask(create_mask(given.mask_mod, batch, 1, rows, columns, device)[:, 0], first)
    if not isinstance(given, Tensor) or given.ndim != 4:
        return None
    return OwnMask((given if given.dtype == torch.bool else given == 0)[:, 0], first)


def for_backend(
    backend: str,
    queries: Int[Tensor, "B R"],
    keys: Int[Tensor, "B S"],
    real: Bool[Tensor, "B C"] | None,
    dtype: torch.dtype,
    own: OwnMask | None = None,
    bias: Float[Tensor, "B S"] | None = None,
) -> Tensor:
    """The mask as `backend` wants it: bool (B 1 R S), additive (B 1 R S), or flash attention's key
    mask (B S).

    With a `bias` of the keys the mask is additive under sdpa too. Flash attention gets its bias in
    another way (`attention/flash.py`).
    """
    dtype = added_in(backend, dtype)
    if backend.startswith("flash"):
        alive = keys >= 0
        return (alive if real is None else alive & real.gather(1, keys.clamp(min=0))).long()
    seen = may_see(queries, keys, real, own)[:, None]
    if bias is not None:
        added = bias[:, None, None].to(dtype).expand(seen.shape)
        return added.masked_fill(~seen, torch.finfo(dtype).min)
    if backend != "sdpa":
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(
            ~seen, torch.finfo(dtype).min
        )
    return seen


def added_in(backend: str, dtype: torch.dtype) -> torch.dtype:
    """The type of an additive mask: the model's, but float32 under flex attention, whose products
    are float32.
    """
    return torch.float32 if backend == "flex_attention" else dtype


def needless(backend: str, rows: int, past: int) -> bool:
    """Whether plain causal attention needs no explicit mask: one query, or a fresh prompt outside
    eager mode.
    """
    return rows == 1 or backend.startswith("flash") or (backend == "sdpa" and past == 0)
