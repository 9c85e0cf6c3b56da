"""InternVL 2, 2.5 and 3: 448-pixel tiles of 256 tokens each, side by side between `<img>` and `</img>`."""

from __future__ import annotations

from .adapter import Adapter

ADAPTER = Adapter(
    model_types=("internvl",),
    image_token=lambda config: config.image_token_id,
    structure="`<img>` and `</img>` around all tiles of an image are text and stay; tiles that touch are one image",
)
