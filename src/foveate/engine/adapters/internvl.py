"""InternVL 2, 2.5 and 3: 448-pixel tiles of 256 tokens each, side by side between `<img>` and `</img>`."""

from __future__ import annotations

from .adapter import Adapter

ADAPTER = Adapter(
    model_types=("internvl",),
    image_token=lambda config: config.image_token_id,
    structure="`<img>`, `</img>`",
    image="all tiles of a picture",
)
