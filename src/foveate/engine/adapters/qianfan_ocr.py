"""Qianfan-OCR: InternVL's tower and tiles before Qwen3."""

from __future__ import annotations

from .adapter import Adapter

ADAPTER = Adapter(
    model_types=("qianfan_ocr",),
    image_token=lambda config: config.image_token_id,
    structure="`<img>`, `</img>`",
    image="all tiles of a picture",
)
