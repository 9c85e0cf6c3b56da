"""Video-LLaVA: an image has the class token beside its patches, and a video eight such frames."""

from __future__ import annotations

from .adapter import Adapter

ADAPTER = Adapter(
    model_types=("video_llava",),
    image_token=lambda config: config.image_token_id,
    video_token=lambda config: config.video_token_id,
    structure="the class token of each frame",
    stays=False,
    image="each picture; all frames of a video",
)
