"""A layer that has just run, or is about to: its attention, for a few of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..adapters import Adapter
from ..cache.slots import Slots
from .masks import OwnMask, may_see
from .rows import attention_rows, take_rows


@dataclass(frozen=True)
class Ran:
    """What a layer ran on, or is about to.

    Attributes:
        index: the layer.
        module: the decoder layer itself.
        hidden: its input (B R D).
        positions: cosines and sines of its rows (b R E).
        rows: the rows' columns.
        own: the family's own mask, or None where attention is causal.
        places: position ids of its rows (b R), where the layer was given any.
        coming: whether it is about to run, so that its keys are not cached yet.
    """

    index: int
    module: Any
    hidden: Tensor
    positions: tuple[Tensor, Tensor]
    rows: Slots
    own: OwnMask | None = None
    places: Tensor | None = None
    coming: bool = False

    def queries(
        self, adapter: Adapter, asked: Int[Tensor, "B Q"], columns: int
    ) -> Float[Tensor, "B H Q E"]:
        """Post-RoPE queries of the rows in the columns `asked`."""
        batch = asked.shape[0]
        rows = self.rows.columns(batch, asked.device)
        where = torch.full((batch, columns + 1), -1, dtype=torch.long, device=asked.device)
        numbers = torch.arange(rows.shape[1], device=asked.device).expand_as(rows)
        where.scatter_(1, torch.where(rows < 0, columns, rows), numbers)
        source = where.gather(1, asked.clamp(min=0))
        if bool(((source < 0) & (asked >= 0)).any()):
            raise ValueError(
                f"attention was asked from columns that layer {self.index} did not run now, whose queries are gone; "
                "ask from columns among view.rows"
            )
        source = source.clamp(min=0)
        at = (take_rows(self.positions[0], source), take_rows(self.positions[1], source))
        found = adapter.queries(self.module, take_rows(self.hidden, source), at)
        rope = getattr(self.module.self_attn.config, "rope_parameters", None) or {}
        if "llama_4_scaling_beta" not in rope or self.places is None:
            return found
        far = take_rows(self.places, source) // rope["original_max_position_embeddings"]
        scale = 1 + rope["llama_4_scaling_beta"] * torch.log1p(
            far
        )  # Ministral 3: queries grow with their position
        return found * scale[:, None, :, None].to(found)

    def keys(self, adapter: Adapter) -> Float[Tensor, "B H R E"]:
        """Post-RoPE keys of all rows, where no cache holds them."""
        return adapter.keys(self.module, self.hidden, self.positions)

    def attention(
        self,
        queries: Float[Tensor, "B H Q E"],
        asked: Int[Tensor, "B Q"],
        keys: Float[Tensor, "B K S E"],
        held: Int[Tensor, "B S"],
        real: Tensor | None,
        columns: int,
    ) -> Float[Tensor, "B H Q C"]:
        """Attention from the columns `asked` to every column; `held` says which column each key is of."""
        device = asked.device
        attention = self.module.self_attn
        allowed = may_see(asked, held, real, self.own) & (asked >= 0)[:, :, None]
        softcap = getattr(attention, "attn_logit_softcapping", None)
        keys = keys.to(queries.device)
        shares = attention_rows(
            queries, keys, attention.scaling, allowed.to(queries.device), softcap
        ).to(device)
        out = shares.new_zeros((*shares.shape[:-1], columns + 1))
        slot = torch.where(held < 0, columns, held)[:, None, None].expand(shares.shape)
        return out.scatter_add(-1, slot, shares)[..., :columns]
