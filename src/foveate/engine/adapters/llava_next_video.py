"""LLaVA-NeXT-Video: images as LLaVA-NeXT; a video's frames are pooled and follow one another without text."""

from __future__ import annotations

from .adapter import Adapter

ADAPTER = Adapter(
    model_types=("llava_next_video",),
    image_token=lambda config: config.image_token_id,
    video_token=lambda config: config.video_token_id,
    structure="a newline after each row of tiles",
    stays=False,
    image="overview and tiles of a picture; all frames of a video",
)
