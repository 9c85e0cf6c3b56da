"""Aria: a resampler of 128 or 256 tokens an image before a mixture of experts."""

from __future__ import annotations

from .adapter import Adapter

ADAPTER = Adapter(
    model_types=("aria",),
    image_token=lambda config: config.image_token_id,
)
