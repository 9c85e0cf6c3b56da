"""What a score may ask of the layers around it: attention rows and keys, recomputed from their inputs."""

from __future__ import annotations

from collections import deque

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..adapters import Adapter
from ..assumptions import Cache
from ..cache.ledger import Ledger
from ..cache.slots import Slots
from ..trace import Pass
from .ran import Ran


class Lookback:
    """The layers that have just run in one forward, and the one about to.

    Args:
        adapter: the family.
        reach: how many layers back a score may look.
        ledger: the conversation with this forward's columns already in it.
        past: what each layer's cache held before this forward; changed by the forward as tokens leave.
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
        """Keys (B K S E) of a layer and their columns (B S), asked by `queries` rows; projected where none are kept."""
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

    def attend(self, index: int, queries: Int[Tensor, "B Q"]) -> Float[Tensor, "B H Q C"]:
        """Attention of layer `index` from the rows of `queries` to all columns, in float32."""
        ran = self._ran(index)
        asked = ran.queries(self.adapter, queries, self.ledger.columns)
        keys, held = self._held(ran, queries.shape[1])
        return ran.attention(asked, queries, keys, held, self.real, self.ledger.columns)
