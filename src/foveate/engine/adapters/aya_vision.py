"""Aya Vision and Command A Vision: tiles and an overview, before Cohere 2, whose global layers know no positions."""

from __future__ import annotations

from .adapter import Adapter

ADAPTER = Adapter(
    model_types=("aya_vision", "cohere2_vision"),
    image_token=lambda config: config.image_token_id,
    structure="tile markers, start and end of an image are text and stay; each tile is an image for quotas",
)
