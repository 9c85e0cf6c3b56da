"""LLaVA-NeXT-Video: images as LLaVA-NeXT; a video's frames are pooled and follow one another without text."""

from __future__ import annotations

from .adapter import Adapter

ADAPTER = Adapter(
    model_types=("llava_next_video",),
    image_token=lambda config: config.image_token_id,
    video_token=lambda config: config.video_token_id,
    structure="as llava_next; all frames of a video count as one image for quotas",
)
