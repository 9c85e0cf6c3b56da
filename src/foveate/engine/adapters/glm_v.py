"""GLM-4.1V, GLM-4.5V, GLM-4.6V and GLM-OCR: any resolution and M-RoPE on half of each head.

The frames of a video stand between image markers, and their tokens have the image's id.
"""

from __future__ import annotations

from .adapter import Adapter

ADAPTER = Adapter(
    model_types=("glm4v", "glm4v_moe", "glm46v", "glm_ocr"),
    image_token=lambda config: config.image_token_id,
    video_token=lambda config: config.video_token_id,
    structure="`<|begin_of_image|>`, `<|end_of_image|>` and the like, timestamps",
    image="each picture, or frame of a video",
)
