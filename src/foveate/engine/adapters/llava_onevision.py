"""LLaVA-OneVision: tiles as LLaVA-NeXT, or a video of pooled frames with one newline at its end."""

from __future__ import annotations

from .adapter import Adapter

ADAPTER = Adapter(
    model_types=("llava_onevision",),
    image_token=lambda config: config.image_token_id,
    video_token=lambda config: config.video_token_id,
    structure="overview, tiles and newlines are all placeholders, of a video too; all may be dropped",
)
