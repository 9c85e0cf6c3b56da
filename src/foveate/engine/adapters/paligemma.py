"""PaliGemma 1 and 2: the image stands first, and the whole prompt sees itself both ways."""

from __future__ import annotations

from .adapter import Adapter
from .llava import patch_grid, patches

ADAPTER = Adapter(
    model_types=("paligemma",),
    image_token=lambda config: config.image_token_id,
    per_image=patches,
    grid=patch_grid,
    own_masks=True,
    image="each picture",
)
