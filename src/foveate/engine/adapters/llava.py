"""LLaVA 1.5 and its kin: every image has the same number of tokens, in raster order.

With a Pixtral tower (Pixtral 12B as `llava`) the number depends on the picture; then, and where a call asks for other
features than the configuration (`vision_feature_select_strategy`), an image is a run of placeholders.
"""

from __future__ import annotations

from typing import Any

from .adapter import Adapter


def patch_grid(config: Any) -> tuple[int, int] | None:
    """Rows and columns of one image's tokens, from the tower's configuration."""
    vision = config.vision_config
    if (
        vision.model_type == "pixtral"
        or getattr(config, "vision_feature_select_strategy", "default") != "default"
    ):
        return None
    side = vision.image_size // vision.patch_size
    return side, side


def patches(config: Any) -> int | None:
    """Visual tokens of one image."""
    grid = patch_grid(config)
    return None if grid is None else grid[0] * grid[1]


ADAPTER = Adapter(
    model_types=("llava", "vipllava"),
    per_image=patches,
    grid=patch_grid,
    structure="none; with a Pixtral tower, as mistral3",
    image="each picture; with a Pixtral tower, each row",
)
