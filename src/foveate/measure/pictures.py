"""How many visual tokens a picture becomes, by the configuration of each kind of family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, image_size_to_num_patches

Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Picture:
    """One picture on its way.

    Attributes:
        tokens: visual tokens that the decoder gets.
        tiles: patches of each tile that goes through the tower.
        projected: tokens that go through the projector; more than `tokens` where some are cut off afterwards.
        windows: sum over the windows of a windowed tower layer of their squared patches; None where all see all.
    """

    tokens: int
    tiles: tuple[int, ...]
    projected: int
    windows: int | None = None


def picture(config: Any, size: Size | None = None, tiles: int = 1) -> Picture:
    """Of a picture of `size` pixels.

    Args:
        config: of the model.
        size: (width, height); needed where the number of tokens depends on it.
        tiles: for families that cut pictures up as their processor decides (InternVL, Idefics3): tiles of one picture,
            its thumbnail included.

    Raises:
        ValueError: the family's rule is not known, or it needs a size.
    """
    vision = config.vision_config
    if tiles < 1:
        raise ValueError(f"tiles={tiles}; expected 1 or more")
    if getattr(config, "image_grid_pinpoints", None) and config.model_type == "llava_next":
        return _anyres(config, size)
    merge = getattr(vision, "spatial_merge_size", None)
    if merge is not None:
        return _dynamic(vision, _sized(config, size), int(merge))
    if config.model_type in _UNKNOWN or not hasattr(vision, "patch_size") or not hasattr(vision, "image_size"):
        raise ValueError(f"how many tokens {config.model_type} makes of a picture is not known; give --visual-tokens")
    patches = (_side(vision.image_size) // _side(vision.patch_size)) ** 2
    tokens = _per_tile(config, patches)
    return Picture(tiles * tokens, (patches,) * tiles, tiles * tokens)


_UNKNOWN = ("llava_onevision", "llava_next_video", "mistral3", "fast_vlm", "ovis2", "aria")


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
    whole = getattr(config, "vision_feature_select_strategy", "default") == "full"
    return patches + int(whole)


def _sized(config: Any, size: Size | None) -> Size:
    if size is None:
        raise ValueError(f"{config.model_type} makes more tokens of larger pictures; give --image-size, like 672x448")
    return size


def _dynamic(vision: Any, size: Size, merge: int) -> Picture:
    """Qwen-VL's kin: sides rounded to whole merged patches."""
    unit = int(vision.patch_size) * merge
    wide, high = (max(1, round(side / unit)) for side in size)
    window = getattr(vision, "window_size", None)
    return Picture(
        wide * high,
        (wide * high * merge**2,),
        wide * high,
        None if window is None else _windows(wide, high, int(window) // unit) * merge**4,
    )


def _windows(wide: int, high: int, side: int) -> int:
    """Sum over windows of `side` x `side` merged patches, cut off at the rim, of their squared sizes."""

    def squares(length: int) -> int:
        return (length // side) * side**2 + (length % side) ** 2

    return squares(wide) * squares(high)


def _anyres(config: Any, size: Size | None) -> Picture:
    """LLaVA-NeXT: an overview, and tiles whose padding is cut off, with a newline token after each row."""
    vision, (width, height) = config.vision_config, _sized(config, size)
    side, patches = vision.image_size // vision.patch_size, (vision.image_size // vision.patch_size) ** 2
    points = config.image_grid_pinpoints
    tiles = int(image_size_to_num_patches((height, width), points, vision.image_size))
    rows, columns = (side * n for n in get_anyres_image_grid_shape((height, width), points, vision.image_size))
    if width / height > columns / rows:
        rows -= 2 * ((rows - int(round(height * columns / width, 7))) // 2)
    else:
        columns -= 2 * ((columns - int(round(width * rows / height, 7))) // 2)
    return Picture(patches + rows * columns + rows, (patches,) * tiles, patches * tiles)
