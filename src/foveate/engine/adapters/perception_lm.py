"""PerceptionLM: pooled tiles of 16 x 16 tokens, or frames of a video."""

from __future__ import annotations

from .adapter import Adapter

ADAPTER = Adapter(
    model_types=("perception_lm",),
    image_token=lambda config: config.image_token_id,
    video_token=lambda config: config.video_token_id,
    structure="none",
    image="all tiles of a picture; all frames of a video",
)
