"""LLaVA-NeXT: an overview and tiles, with a newline token after each row.

The number of tokens depends on the image's shape. Images that touch in the prompt, with no text between,
count as one image for quotas.
"""

from __future__ import annotations

from .adapter import Adapter

ADAPTER = Adapter(
    model_types=("llava_next",),
    image_token=lambda config: config.image_token_id,
    structure="overview, tiles and the newline after each row are all placeholders; all may be dropped",
)
