"""Janus (understanding): 576 tokens an image, between its begin and end tokens."""

from __future__ import annotations

from .adapter import Adapter

ADAPTER = Adapter(
    model_types=("janus",),
    image_token=lambda config: config.image_token_id,
    structure="`<begin_of_image>`, `<end_of_image>`",
)
