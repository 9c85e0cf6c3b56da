"""Idefics3 and SmolVLM: tiles and an overview, each between text tokens that name its row and column."""

from __future__ import annotations

from .adapter import Adapter

ADAPTER = Adapter(
    model_types=("idefics3", "smolvlm"),
    image_token=lambda config: config.image_token_id,
    structure="`<fake_token_around_image>`, `<row_i_col_j>` and `<global-img>` are text and stay; each tile is an image for quotas",
)
