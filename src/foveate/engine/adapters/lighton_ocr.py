"""LightOnOCR: a Pixtral tower, rows of merged patches without breaks, before Qwen3."""

from __future__ import annotations

from .adapter import Adapter

ADAPTER = Adapter(
    model_types=("lighton_ocr",),
    image_token=lambda config: config.image_token_id,
)
