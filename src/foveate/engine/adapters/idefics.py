"""Idefics3 and SmolVLM: tiles and an overview, each between text tokens that name its row and column."""

from __future__ import annotations

from typing import Any

from .adapter import Adapter


def grid(config: Any) -> tuple[int, int]:
    """Rows and columns of one tile's tokens, after the shuffle that packs `scale_factor`^2 patches into one."""
    side = config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor
    return side, side


ADAPTER = Adapter(
    model_types=("idefics3", "smolvlm"),
    per_image=lambda config: grid(config)[0] ** 2,
    grid=grid,
    structure="`<fake_token_around_image>`, `<row_i_col_j>`, `<global-img>`",
    image="each tile",
)
