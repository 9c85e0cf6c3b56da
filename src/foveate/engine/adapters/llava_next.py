"""LLaVA-NeXT: an overview and tiles, with a newline token after each row.

The number of tokens depends on the image's shape. Images that touch in the prompt, with no text between,
count as one image for quotas.
"""

from __future__ import annotations

from .adapter import Adapter

ADAPTER = Adapter(
    model_types=("llava_next",),
    image_token=lambda config: config.image_token_id,
    structure="a newline after each row of tiles",
    stays=False,
    image="overview and tiles of a picture",
)
