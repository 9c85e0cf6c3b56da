"""What the engine must be told about a family; everything else is the same for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..rows import project_keys, project_queries
from ..towerform import TowerForm, known_tower


def multimodal_body(model: Any) -> Any:
    """The module that merges image features into the text and calls the language model."""
    inner = getattr(model, "model", None)
    return inner if hasattr(inner, "language_model") else model


@dataclass(frozen=True)
class Adapter:
    """A family of models.

    Attributes:
        model_types: transformers' `config.model_type` values.
        image_token: the id of visual tokens in `input_ids`, from the model's configuration.
        per_image: visual tokens of every image where the configuration fixes them, else None.
        grid: (rows, columns) of every image's tokens in raster order, or None where they form no such grid.
        body: the multimodal module; its `language_model` has `layers`.
        queries: post-RoPE query rows (B H Q D) of a decoder layer's attention, from the layer's input.
        keys: post-RoPE keys (B H T D), likewise; asked only where there is no cache.
        tower: how the vision tower is built, from the multimodal module; asked only where a score looks at the tower.
    """

    model_types: tuple[str, ...]
    image_token: Callable[[Any], int]
    per_image: Callable[[Any], int | None] = lambda config: None
    grid: Callable[[Any], tuple[int, int] | None] = lambda config: None
    body: Callable[[Any], Any] = multimodal_body
    queries: Callable[[nn.Module, Tensor, tuple[Tensor, Tensor]], Tensor] = project_queries
    keys: Callable[[nn.Module, Tensor, tuple[Tensor, Tensor]], Tensor] = project_keys
    tower: Callable[[Any], TowerForm] = known_tower
