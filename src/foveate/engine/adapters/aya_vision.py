"""Aya Vision and Command A Vision: tiles and an overview, before Cohere 2, whose global layers know no positions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..attention.rows import project_keys, project_queries
from .adapter import Adapter

Positions = tuple[Tensor, Tensor]


def _known_to(layer: Any, positions: Positions) -> Positions:
    """No rotation at all where a layer sees the whole past; windows see positions."""
    if layer.self_attn.sliding_window is not None:
        return positions
    cos, sin = positions
    return cos.new_ones(cos.shape), sin.new_zeros(sin.shape)


def queries(layer: nn.Module, hidden: Tensor, positions: Positions) -> Tensor:
    """As `project_queries`."""
    return project_queries(layer, hidden, _known_to(layer, positions))


def keys(layer: nn.Module, hidden: Tensor, positions: Positions) -> Tensor:
    """As `project_keys`."""
    return project_keys(layer, hidden, _known_to(layer, positions))


ADAPTER = Adapter(
    model_types=("aya_vision", "cohere2_vision"),
    queries=queries,
    keys=keys,
    structure="tile markers, `<|START_OF_IMG|>`, `<|END_OF_IMG|>`",
    image="each tile",
)
