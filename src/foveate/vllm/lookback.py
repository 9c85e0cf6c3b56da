"""What a score may ask of the layers around it, from the queries and keys that vLLM's layers made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from vllm.distributed import get_tp_group

from ..core.view import Projection
from ..engine.attention.rows import attention_rows
from ..engine.cache.numbers import Numbers


@dataclass(frozen=True)
class Projected:
    """Queries and keys of one request in a layer that has run, or is about to.

    Attributes:
        attention: vLLM's attention of the layer.
        queries: rotated, of the rows that run now and the heads of this rank (R H E).
        keys: rotated, of all that the layer holds, likewise (S K E).
        columns: the rows' columns (R).
        held: the keys' columns, ascending (S). In a prefill they are the rows'.
        key_heads: of all ranks together.
        numbers: for how many tokens each column speaks in the layer; None: each for itself.
    """

    attention: Any
    queries: Float[Tensor, "R H E"]
    keys: Float[Tensor, "S K E"]
    columns: Int[Tensor, R]
    held: Int[Tensor, S]
    key_heads: int
    numbers: Numbers | None

    def attend(self, asked: Int[Tensor, "1 Q"], columns: int) -> Float[Tensor, "1 H Q C"]:
        """Attention from the columns `asked` to every column, in float32."""
        place = torch.searchsorted(self.columns, asked[0].clamp(min=0)).clamp(
            max=len(self.columns) - 1
        )
        if bool(((self.columns[place] != asked[0]) & (asked[0] >= 0)).any()):
            raise ValueError(
                "attention was asked from columns that the layer did not run now; ask from columns among view.rows"
            )
        allowed = (self.held <= asked[0][:, None]) & (asked[0] >= 0)[:, None]  # (Q S)
        shares = attention_rows(
            self.queries[place].transpose(0, 1)[None],
            self.keys.transpose(0, 1)[None],
            self.attention.impl.scale,
            allowed[None],
            self.attention.impl.logits_soft_cap or None,
            None if self.numbers is None else self.numbers.biases(self.held[None]),
        )
        shares = all_heads(shares, 1)
        out = shares.new_zeros((*shares.shape[:-1], columns))
        out[..., self.held] = shares
        return out

    def keys_by_column(self, columns: int) -> Float[Tensor, "1 C K"]:
        """Keys by column, heads side by side; 0 where the layer held none."""
        flat = all_key_heads(self.keys, self.key_heads).flatten(1)
        out = flat.new_zeros((columns, flat.shape[1]))
        out[self.held] = flat
        return out[None]

    def project(self, which: Projection) -> Float[Tensor, "1 R H E"]:
        """Queries or keys of the rows that run now, which are the last that the layer holds."""
        found = (
            all_heads(self.queries, 1)
            if which == "queries"
            else all_key_heads(self.keys[-len(self.columns) :], self.key_heads)
        )
        return found[None]


def all_heads(values: Tensor, dim: int) -> Tensor:
    """The heads of all ranks of a tensor-parallel model, in order, where `values` has this rank's."""
    group = get_tp_group()
    return values if group.world_size == 1 else group.all_gather(values.contiguous(), dim)


def all_key_heads(keys: Float[Tensor, "S K E"], heads: int) -> Float[Tensor, "S K E"]:
    """As `all_heads`, with each of the `heads` key heads once where several ranks hold the same."""
    group = get_tp_group()
    if group.world_size == 1:
        return keys
    found: Tensor = group.all_gather(keys.contiguous(), 1)
    return found[:, :: found.shape[1] // heads]


def of_first_rank(values: Tensor) -> Tensor:
    """`values` as the first rank of a tensor-parallel model has them, so that all ranks do the same."""
    group = get_tp_group()
    if group.world_size == 1:
        return values
    if values.dtype == torch.bool:
        return group.broadcast(values.int(), 0).bool()
    return group.broadcast(values.contiguous(), 0)


class Reached(Exception):  # noqa: N818 - it is the expected end, no error
    """A layer has projected queries and keys, and is stopped where attention would begin."""

    def __init__(self, queries: Tensor, keys: Tensor) -> None:
        super().__init__("attention was reached")
        self.queries = queries
        self.keys = keys
