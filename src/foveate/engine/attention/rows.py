"""Attention without eager mode: a few query rows, recomputed against cached keys, in O(Q T)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..assumptions import rotary_of


def project_queries(
    layer: nn.Module, hidden: Float[Tensor, "B Q D"], positions: tuple[Tensor, Tensor]
) -> Float[Tensor, "B H Q E"]:
    """Post-RoPE queries of the layer's attention for some rows of the layer's input.

    Args:
        layer: a decoder layer of the common form: `input_layernorm`, then `self_attn` with
            `q_proj`.
        hidden: the layer's input at the rows.
        positions: cosines and sines (b Q E) of the rows, b = 1 or B.
    """
    return _project(layer, "q", hidden, positions)


def project_keys(
    layer: nn.Module, hidden: Float[Tensor, "B T D"], positions: tuple[Tensor, Tensor]
) -> Float[Tensor, "B H T E"]:
    """Post-RoPE keys of the layer's attention; as `project_queries`."""
    return _project(layer, "k", hidden, positions)


def beside(hidden: Tensor, module: nn.Module) -> Tensor:
    """`hidden` where the module's weights lie: in a model over several devices, a layer's input may
    come from another.

    Weights that are elsewhere until the module runs (offloaded ones) are awaited where `hidden` is.
    """
    weight = getattr(module, "weight", None)
    return hidden if weight is None or weight.is_meta else hidden.to(weight.device)


def _project(layer: Any, which: str, hidden: Tensor, positions: tuple[Tensor, Tensor]) -> Tensor:
    attention = layer.self_attn
    norm = layer.input_layernorm
    states = getattr(attention, f"{which}_proj")(norm(beside(hidden, norm)))
    states = states.view(*hidden.shape[:-1], -1, attention.head_dim)
    norm = getattr(attention, f"{which}_norm", None)
    states = (states if norm is None else norm(states)).transpose(1, 2)
    cos, sin = (p.to(states.device) for p in positions)
    return rotary_of(attention)(states, states, cos, sin)[0]


def attention_rows(
    queries: Float[Tensor, "B H Q E"],
    keys: Float[Tensor, "B K S E"],
    scaling: float,
    allowed: Bool[Tensor, "B Q S"],
    softcap: float | None = None,
    bias: Float[Tensor, "B S"] | None = None,
) -> Float[Tensor, "B H Q S"]:
    """Softmax of the scaled products in float32; rows that may look at nothing are zeros.

    `softcap` c squeezes the products x into c tanh(x / c), as Gemma 2 does. `bias` is then added,
    of every key.
    """
    batch, _, rows, _ = queries.shape
    grouped = queries.view(batch, keys.shape[1], -1, rows, queries.shape[-1]).float()
    products = torch.einsum("bkgqe,bkse->bkgqs", grouped, keys.float()) * scaling
    if softcap is not None:
        products = softcap * torch.tanh(products / softcap)
    if bias is not None:
        products = products + bias.float()[:, None, None, None]
    products = products.flatten(1, 2).masked_fill(~allowed[:, None], -torch.inf)
    return products.softmax(-1).nan_to_num(0.0)


def take_rows(values: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (B R) of `values` (b T ...), b = 1 or B."""
    index = index.to(values.device)
    if values.shape[0] != index.shape[0]:
        values = values.expand(index.shape[0], *values.shape[1:])
    if values.ndim == 2:
        return values.gather(1, index)
    return values.gather(1, index[..., None].expand(*index.shape, values.shape[-1]))


def replace_rows(hidden: Tensor, place: Tensor, keep: Tensor, merged: Tensor) -> Tensor:
    """`hidden` with the kept visual tokens' rows replaced by their merged states."""
    batch, rows, size = hidden.shape
    index = torch.where(keep & (place >= 0), place, rows)[..., None].expand(-1, -1, size)
    padded = torch.cat([hidden, hidden.new_zeros((batch, 1, size))], 1)
    return padded.scatter(1, index.to(hidden.device), merged.to(hidden))[:, :-1]
