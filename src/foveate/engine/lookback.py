"""What a score may ask of the layers around it: attention rows and keys, recomputed from their inputs."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache

from .adapters import Adapter
from .ledger import Ledger
from .masks import may_see
from .rows import attention_rows, take_rows
from .slots import Slots
from .trace import Pass

Positions = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Run:
    """A layer with its input `hidden`, whose rows are `rows` at `positions`; whether its keys are not cached yet."""

    index: int
    layer: nn.Module
    hidden: Tensor
    positions: Positions
    rows: Slots
    coming: bool = False


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
        self.adapter, self.ledger, self.past, self.real = adapter, ledger, past, real
        self.cache, self.record = cache, record
        self.before: deque[Run] = deque(maxlen=reach)
        self.coming: Run | None = None

    def _run(self, index: int) -> Run:
        found = [run for run in (*self.before, self.coming) if run is not None and run.index == index]
        if not found:
            raise ValueError(
                f"attention of layer {index} was not held back; a score that looks further back than the layer before "
                "says so by an attribute `back`, the number of layers"
            )
        return found[0]

    def _held(self, run: Run, queries: int) -> tuple[Tensor, Tensor]:
        """Keys (B K S E) of a layer and their columns (B S), asked by `queries` rows; projected where none are kept."""
        rows = run.rows.columns(run.hidden.shape[0], self.ledger.tokens.kind.device)
        held = rows
        if self.cache is None or run.coming:
            keys = self.adapter.keys(run.layer, run.hidden, run.positions)
            projected = rows.shape[1]
        else:
            keys, projected = self.cache.layers[run.index].keys, 0
        if self.cache is not None:
            held = torch.cat([self.past[run.index].columns(rows.shape[0], rows.device), rows], 1)
            if run.coming and held.shape[1] > rows.shape[1]:
                keys = torch.cat([self.cache.layers[run.index].keys, keys], 2)
        self.record.asked.append((run.index, queries, held.shape[1], projected))
        return keys, held

    def keys(self, index: int) -> Float[Tensor, "B C K"]:
        """Keys of layer `index` by column, heads side by side; 0 where it held none."""
        keys, held = self._held(self._run(index), 0)
        flat = keys.transpose(1, 2).flatten(2)
        out = flat.new_zeros((flat.shape[0], self.ledger.columns + 1, flat.shape[2]))
        slot = torch.where(held < 0, self.ledger.columns, held).to(out.device)
        return out.scatter(1, slot[..., None].expand(flat.shape), flat)[:, :-1]

    def attend(self, index: int, queries: Int[Tensor, "B Q"]) -> Float[Tensor, "B H Q C"]:
        """Attention of layer `index` from the rows of `queries` to all columns, in float32."""
        run = self._run(index)
        hidden, positions = run.hidden, run.positions
        batch, columns, device = hidden.shape[0], self.ledger.columns, queries.device
        rows = run.rows.columns(batch, device)
        where = torch.zeros((batch, columns + 1), dtype=torch.long, device=device)
        numbers = torch.arange(rows.shape[1], device=device).expand_as(rows)
        where.scatter_(1, torch.where(rows < 0, columns, rows), numbers)
        source = where.gather(1, queries.clamp(min=0)).to(hidden.device)
        at: Positions = (take_rows(positions[0], source), take_rows(positions[1], source))
        asked = self.adapter.queries(run.layer, take_rows(hidden, source), at)
        keys, held = self._held(run, queries.shape[1])
        allowed = may_see(queries, held, self.real) & (queries >= 0)[:, :, None]
        module: Any = run.layer
        shares = attention_rows(asked, keys, module.self_attn.scaling, allowed.to(asked.device)).to(device)
        out = shares.new_zeros((*shares.shape[:-1], columns + 1))
        slot = torch.where(held < 0, columns, held)[:, None, None].expand(shares.shape)
        return out.scatter_add(-1, slot, shares)[..., :columns]
