"""How many visual tokens a picture becomes, by the configuration of each kind of family."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    image_size_to_num_patches,
)

Size = tuple[int, int]  # width, height

# Families whose tokens and towers' FLOPs are known from a configuration: test_every_cost.py runs
# each of them. Others are measured on the live model alone (see `vision`): Pixtral's pictures see
# one another, GOT-OCR's and FastVLM's towers are convolutions, Aria, Idefics2 and Ovis2 resample.
KNOWN = (
    "llava", "vipllava", "llava_next", "llava_next_video", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl",
    "qwen3_vl_moe", "glm4v", "glm46v", "glm4v_moe", "glm_ocr", "internvl", "qianfan_ocr", "idefics3", "smolvlm",
    "gemma3", "paligemma", "janus", "deepseek_vl", "aya_vision", "cohere2_vision",
)  # fmt: skip
ANYRES = ("llava_next", "llava_next_video", "llava_onevision")
_ANY_TOWER = ("llava", "vipllava", *ANYRES)  # may be built around other towers, as Pixtral 12B is


@dataclass(frozen=True)
class PictureSize:
    """One picture on its way.

    Attributes:
        tokens: visual tokens that the decoder gets.
        tiles: patches of each tile that goes through the tower.
        projected: tokens that go through the projector; more than `tokens` where some are cut off
            afterwards.
        windows: sum over the windows of a windowed tower layer of their squared patches; None where
            all see all.
    """

    tokens: int
    tiles: tuple[int, ...]
    projected: int
    windows: int | None = None


def picture(config: Any, size: Size | None = None, tiles: int = 1) -> PictureSize:
    """Of a picture of `size` pixels.

    Args:
        config: of the model.
        size: (width, height); needed where the number of tokens depends on it.
        tiles: for families that cut pictures up as their processor decides (InternVL, Idefics3):
            tiles of one picture, its thumbnail included.

    Raises:
        ValueError: the family is not of `KNOWN`, or it needs a size.
    """
    vision = config.vision_config
    tower = getattr(vision, "model_type", "no tower")
    if tiles < 1:
        raise ValueError(f"tiles={tiles}; expected 1 or more")
    if config.model_type not in KNOWN or (
        config.model_type in _ANY_TOWER
        and tower not in ("clip_vision_model", "siglip_vision_model")
    ):
        raise ValueError(
            f"how many tokens {config.model_type} ({tower}) makes of a picture, and at what cost, is not "
            "known from its configuration alone. `foveate cost` and `advise` take --visual-tokens instead and leave "
            "the tower out; `foveate generate` counts it on the model itself."
        )
    if config.model_type in ANYRES:
        return _anyres(config, size)
    merge = getattr(vision, "spatial_merge_size", None)
    if merge is not None:
        return _dynamic(vision, _sized(config, size), int(merge))
    patches = (_side(vision.image_size) // _side(vision.patch_size)) ** 2
    tokens = _per_tile(config, patches)
    return PictureSize(tiles * tokens, (patches,) * tiles, tiles * tokens)


def _side(value: Any) -> int:
    return int(value[0] if isinstance(value, Sequence) else value)


def _per_tile(config: Any, patches: int) -> int:
    """Tokens that the projector makes of a tile's patches."""
    if getattr(config, "mm_tokens_per_image", None):
        return int(config.mm_tokens_per_image)
    if getattr(config, "downsample_ratio", None):
        return round(patches * config.downsample_ratio**2)
    if getattr(config, "scale_factor", None):
        return int(patches // config.scale_factor**2)
    if getattr(config, "downsample_factor", None):
        return int(patches // config.downsample_factor**2)
    whole = getattr(config, "vision_feature_select_strategy", "default") == "full"
    return patches + int(whole)


def _sized(config: Any, size: Size | None) -> Size:
    if size is None:
        raise ValueError(
            f"{config.model_type} makes more tokens of larger pictures; give --image-size, like 672x448"
        )
    return size


def _dynamic(vision: Any, size: Size, merge: int) -> PictureSize:
    """Qwen-VL's kin: sides rounded to whole merged patches."""
    unit = int(vision.patch_size) * merge
    wide, high = (max(1, round(side / unit)) for side in size)
    window = getattr(vision, "window_size", None)
    return PictureSize(
        wide * high,
        (wide * high * merge**2,),
        wide * high,
        None if window is None else _windows(wide, high, int(window) // unit) * merge**4,
    )


def _windows(wide: int, high: int, side: int) -> int:
    """Sum over windows of `side` x `side` merged patches, cut off at the rim, of their squared
    sizes.
    """

    def squares(length: int) -> int:
        return (length // side) * side**2 + (length % side) ** 2

    return squares(wide) * squares(high)


def _anyres(config: Any, size: Size | None) -> PictureSize:
    """LLaVA-NeXT: an overview, and tiles whose padding is cut off, with a newline token after each
    row.

    LLaVA-OneVision's are scaled down as well, where they are more than `vision_aspect_ratio` says,
    like anyres_max_9.
    """
    vision, (width, height) = config.vision_config, _sized(config, size)
    side = vision.image_size // vision.patch_size
    patches = (vision.image_size // vision.patch_size) ** 2
    points = config.image_grid_pinpoints
    tiles = int(image_size_to_num_patches((height, width), points, vision.image_size))
    rows, columns = (
        side * n for n in get_anyres_image_grid_shape((height, width), points, vision.image_size)
    )
    if width / height > columns / rows:
        rows -= 2 * ((rows - int(round(height * columns / width, 7))) // 2)
    else:
        columns -= 2 * ((columns - int(round(width * rows / height, 7))) // 2)
    most = int(getattr(config, "vision_aspect_ratio", "0").rpartition("_")[2])
    ratio = math.sqrt(rows * columns / (most * patches)) if most else 1.0
    if ratio > 1.1:
        rows = int(rows // ratio)
        columns = int(columns // ratio)
    return PictureSize(patches + rows * columns + rows, (patches,) * tiles, patches * tiles)
