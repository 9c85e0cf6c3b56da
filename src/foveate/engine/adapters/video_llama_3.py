"""VideoLLaMA 3: any resolution, frames of a video with timestamps between."""

from __future__ import annotations

from .adapter import Adapter

ADAPTER = Adapter(
    model_types=("video_llama_3",),
    image_token=lambda config: config.image_token_id,
    video_token=lambda config: config.video_token_id,
    structure="timestamps and commas between frames",
    image="each picture or frame",
)
