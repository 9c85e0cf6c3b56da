"""Mistral 3 and Mistral Small 3.1 with the Pixtral tower: rows of merged patches, as many as the picture has."""

from __future__ import annotations

from .adapter import Adapter

ADAPTER = Adapter(
    model_types=("mistral3",),
    image_token=lambda config: config.image_token_id,
    structure="`[IMG_BREAK]` after each row, `[IMG_END]`",
    image="each row",
)
