"""Qianfan-OCR: InternVL's tower and tiles before Qwen3."""

from __future__ import annotations

from .adapter import Adapter

ADAPTER = Adapter(
    model_types=("qianfan_ocr",),
    image_token=lambda config: config.image_token_id,
    structure="`<img>` and `</img>` around all tiles of an image are text and stay; tiles that touch are one image",
)
