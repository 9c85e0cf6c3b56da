"""FastVLM: few tokens an image, from a convolutional tower (which needs timm)."""

from __future__ import annotations

from .adapter import Adapter

ADAPTER = Adapter(
    model_types=("fast_vlm",),
    image_token=lambda config: config.image_token_id,
)
