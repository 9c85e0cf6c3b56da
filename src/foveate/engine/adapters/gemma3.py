"""Gemma 3: 256 tokens an image, which see one another both ways; most layers see a window of the past alone.

Windows are counted over original positions: what was dropped does not let a layer look further back.
"""

from __future__ import annotations

from typing import Any

from .adapter import Adapter


def grid(config: Any) -> tuple[int, int]:
    """Rows and columns of one image's pooled tokens."""
    side = int(config.mm_tokens_per_image**0.5)
    return side, side


ADAPTER = Adapter(
    model_types=("gemma3",),
    per_image=lambda config: config.mm_tokens_per_image,
    grid=grid,
    own_masks=True,
    structure="`<start_of_image>`, `<end_of_image>`",
    image="each picture or crop",
)
