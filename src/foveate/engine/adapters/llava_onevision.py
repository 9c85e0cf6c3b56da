"""LLaVA-OneVision: tiles as LLaVA-NeXT, or a video of pooled frames with one newline at its end."""

from __future__ import annotations

from .adapter import Adapter

ADAPTER = Adapter(
    model_types=("llava_onevision",),
    image_token=lambda config: config.image_token_id,
    video_token=lambda config: config.video_token_id,
    structure="a newline after each row of tiles and after a video",
    stays=False,
    image="overview and tiles of a picture; all frames of a video",
)
