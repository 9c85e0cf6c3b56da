"""Attention masks in the form each backend takes, from who may see whom."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

SUPPORTED = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")


def may_see(
    queries: Int[Tensor, "B R"], keys: Int[Tensor, "B S"], real: Bool[Tensor, "B C"] | None
) -> Bool[Tensor, "B R S"]:
    """Causal by column; fills and padding are never seen, and fills themselves see all (their rows are unused)."""
    seen = (keys >= 0)[:, None] & (keys[:, None] <= queries[:, :, None])
    if real is not None:
        seen &= real.gather(1, keys.clamp(min=0))[:, None]
    return seen | (queries < 0)[:, :, None]


def for_backend(
    backend: str,
    queries: Int[Tensor, "B R"],
    keys: Int[Tensor, "B S"],
    real: Bool[Tensor, "B C"] | None,
    dtype: torch.dtype,
) -> Tensor:
    """The mask as `backend` wants it: bool (B 1 R S), additive (B 1 R S), or flash attention's key mask (B S)."""
    if backend.startswith("flash"):
        alive = keys >= 0
        return (alive if real is None else alive & real.gather(1, keys.clamp(min=0))).long()
    seen = may_see(queries, keys, real)[:, None]
    if backend == "eager":
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
    return seen


def needless(backend: str, rows: int, past: int) -> bool:
    """Whether plain causal attention needs no explicit mask: one query, or a fresh prompt outside eager mode."""
    return rows == 1 or backend.startswith("flash") or (backend == "sdpa" and past == 0)
