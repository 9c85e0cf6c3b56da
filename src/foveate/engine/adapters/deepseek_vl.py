"""DeepSeek-VL: 576 tokens an image; the hybrid tower sees two resolutions and gives one set of tokens."""

from __future__ import annotations

from .adapter import Adapter

ADAPTER = Adapter(
    model_types=("deepseek_vl", "deepseek_vl_hybrid"),
    image_token=lambda config: config.image_token_id,
)
