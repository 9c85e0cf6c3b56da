"""Gemma 3: 256 tokens an image, which see one another both ways; most layers see a window of the past alone.

Windows are counted over original positions: what was dropped does not let a layer look further back.
"""

from __future__ import annotations

from .adapter import Adapter

ADAPTER = Adapter(
    model_types=("gemma3",),
    image_token=lambda config: config.image_token_id,
    own_masks=True,
    structure="`<start_of_image>` and `<end_of_image>` are text and stay",
)
