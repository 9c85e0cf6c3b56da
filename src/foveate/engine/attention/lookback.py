"""What a score may ask of the layers around it: attention rows and keys, recomputed from their
inputs.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...core.view import Projection
from ..adapters import Adapter
from ..assumptions import Cache
from ..cache.ledger import Ledger
from ..cache.numbers import Numbers
from ..cache.slots import Slots
from ..trace import Pass
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
        numbers: for how many tokens each column speaks in it, or None where each speaks for itself.
    """

    index: int
    module: Any
    hidden: Tensor
    positions: tuple[Tensor, Tensor]
    rows: Slots
    own: OwnMask | None = None
    places: Tensor | None = None
    coming: bool = False
    numbers: Numbers | None = None

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
        """Attention from the columns `asked` to every column; `held` says which column each key is
        of.
        """
        device = asked.device
        attention = self.module.self_attn
        allowed = may_see(asked, held, real, self.own) & (asked >= 0)[:, :, None]
        softcap = getattr(attention, "attn_logit_softcapping", None)
        keys = keys.to(queries.device)
        bias = None if self.numbers is None else self.numbers.biases(held).to(queries.device)
        shares = attention_rows(
            queries, keys, attention.scaling, allowed.to(queries.device), softcap, bias
        ).to(device)
        out = shares.new_zeros((*shares.shape[:-1], columns + 1))
        slot = torch.where(held < 0, columns, held)[:, None, None].expand(shares.shape)
        return out.scatter_add(-1, slot, shares)[..., :columns]


class Lookback:
    """The layers that have just run in one forward, and the one about to.

    Args:
        adapter: the family.
        reach: how many layers back a score may look.
        ledger: the conversation with this forward's columns already in it.
        past: what each layer's cache held before this forward; changed by the forward as tokens
            leave.
        real: which columns so far are not padding, or None if all are.
        cache: the cache, or None.
        record: what is asked is counted here.
    """

    def __init__(
        self,
        adapter: Adapter,
        reach: int,
        ledger: Ledger,
        past: list[Slots],
        real: Tensor | None,
        cache: Cache | None,
        record: Pass,
    ) -> None:
        self.adapter = adapter
        self.ledger = ledger
        self.past = past
        self.real = real
        self.cache = cache
        self.record = record
        self.before: deque[Ran] = deque(maxlen=reach)
        self.coming: Ran | None = None

    def _ran(self, index: int) -> Ran:
        found = [
            ran for ran in (*self.before, self.coming) if ran is not None and ran.index == index
        ]
        if not found:
            raise ValueError(
                f"attention of layer {index} was not held back; a score that looks further back than the layer before "
                "says so in its needs: `back` of foveate.Needs, the number of layers"
            )
        return found[0]

    def _held(self, ran: Ran, queries: int) -> tuple[Tensor, Tensor]:
        """Keys (B K S E) of a layer and their columns (B S), asked by `queries` rows; projected
        where none are kept.
        """
        rows = ran.rows.columns(ran.hidden.shape[0], self.ledger.tokens.kind.device)
        held = rows
        if self.cache is None or ran.coming:
            keys = ran.keys(self.adapter)
            projected = rows.shape[1]
        else:
            keys = self.cache.layers[ran.index].keys
            projected = 0
        if self.cache is not None:
            held = torch.cat([self.past[ran.index].columns(rows.shape[0], rows.device), rows], 1)
            if ran.coming and held.shape[1] > rows.shape[1]:
                keys = torch.cat([self.cache.layers[ran.index].keys, keys], 2)
        self.record.asked.append((ran.index, queries, held.shape[1], projected))
        return keys, held

    def keys(self, index: int) -> Float[Tensor, "B C K"]:
        """Keys of layer `index` by column, heads side by side; 0 where it held none."""
        keys, held = self._held(self._ran(index), 0)
        flat = keys.transpose(1, 2).flatten(2)
        out = flat.new_zeros((flat.shape[0], self.ledger.columns + 1, flat.shape[2]))
        slot = torch.where(held < 0, self.ledger.columns, held).to(out.device)
        return out.scatter(1, slot[..., None].expand(flat.shape), flat)[:, :-1].to(held.device)

    def project(self, which: Projection, rotated: bool) -> Float[Tensor, "B R H E"]:
        """Queries or keys of all rows in the layer about to run."""
        ran = self.coming
        if ran is None:
            raise ValueError("no layer is about to run, whose queries or keys could be projected")
        cos, sin = ran.positions
        # A rotation by nothing has cosines of one and sines of zero.
        at = (cos, sin) if rotated else (torch.ones_like(cos), torch.zeros_like(sin))
        rows = ran.hidden.shape[1]
        if which == "queries":
            self.record.asked.append((ran.index, rows, 0, 0))
            return self.adapter.queries(ran.module, ran.hidden, at).transpose(1, 2)
        self.record.asked.append((ran.index, 0, 0, rows))
        return self.adapter.keys(ran.module, ran.hidden, at).transpose(1, 2)

    def attend(self, index: int, queries: Int[Tensor, "B Q"]) -> Float[Tensor, "B H Q C"]:
        """Attention of layer `index` from the rows of `queries` to all columns, in float32."""
        ran = self._ran(index)
        asked = ran.queries(self.adapter, queries, self.ledger.columns)
        keys, held = self._held(ran, queries.shape[1])
        return ran.attention(asked, queries, keys, held, self.real, self.ledger.columns)
