"""Where in its picture each visual token lies, for every family: read off what the processor made.

Families arrange tokens in one of four ways, and the names and shapes of the inputs say which:

- a grid of merged patches over the whole picture (``image_grid_thw``: Qwen, GLM, VideoLLaMA 3);
- rows of patches, as many as the picture has (``image_sizes`` and one picture each: Pixtral);
- an overview, then the picture in detail with a newline token after each row (``image_sizes`` and
  tiles: LLaVA-NeXT, LLaVA-OneVision);
- tiles with the same square of tokens each (all others).

Resamplers mix the whole picture into every token, so theirs have no place in it.
tests/engine/test_places.py changes one corner of a picture and asks which tokens change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isqrt, log, sqrt
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from ..models.loaded import Loaded

Grid = tuple[int, int]  # rows, columns

_RESAMPLED = ("aria", "idefics2")
_MIXED = "Each of these tokens is resampled from the whole picture, so it has no place in it."
_ENDS = "These tokens mark the ends of rows, so they have no place in the picture."
_CLASS = "These tokens stand for the whole picture, so they have no place in it."
_UNKNOWN = "How this model lays its tokens out over the picture is not known."
_THUMB = 16  # pixels a side, at which pictures are compared
_ALIKE = 0.04  # mean difference of two pictures that show the same, of 1


@dataclass(frozen=True)
class Place:
    """Visual tokens and the picture that they were made from.

    Attributes:
        title: such as "Picture 1, overview".
        picture: the user's picture, or the part of it that the model saw; None for tokens that
            another place's picture is shown for.
        tokens: numbers of the tokens among the prompt's visual tokens; in raster order if there is
            a grid.
        grid: (rows, columns) of the tokens over the picture; None where they have no place in it.
        note: why they have none.
    """

    title: str
    picture: Image.Image | None
    tokens: tuple[int, ...]
    grid: Grid | None
    note: str = ""


def places(
    loaded: Loaded, inputs: Mapping[str, Any], pictures: Sequence[Image.Image], visual: int
) -> list[Place]:
    """Where the visual tokens of one prompt lie; each token is in exactly one place.

    Tokens whose arrangement is not known are in one place without a grid, with a note.

    Args:
        loaded: the model.
        inputs: what its processor made of the prompt with these pictures (one sample).
        pictures: of the prompt, in order.
        visual: number of the prompt's visual tokens (N).
    """
    if loaded.anatomy.family in _RESAMPLED:
        found = _resampled(pictures, visual)
    elif "image_grid_thw" in inputs:
        found = _merged(loaded, inputs, pictures)
    elif "image_sizes" in inputs and inputs["pixel_values"].ndim == 5:
        found = _any_resolution(loaded, inputs, pictures)
    elif "image_sizes" in inputs:
        found = _sized(loaded, inputs, pictures)
    else:
        found = _tiled(loaded, inputs, pictures, visual)
    if sorted(token for place in found for token in place.tokens) != list(range(visual)):
        found = [Place(_title(0), pictures[0], tuple(range(visual)), None, _UNKNOWN)]
    return found if len(pictures) > 1 else [_unnumbered(place) for place in found]


def _title(picture: int, part: str = "") -> str:
    return f"Picture {picture + 1}{', ' if part else ''}{part}"


def _resampled(pictures: Sequence[Image.Image], visual: int) -> list[Place]:
    """As many tokens for each picture as for every other."""
    each = visual // len(pictures)
    ends = [each * (i + 1) for i in range(len(pictures) - 1)] + [visual]
    starts = [0, *ends]
    return [
        Place(_title(i), picture, tuple(range(starts[i], ends[i])), None, _MIXED)
        for i, picture in enumerate(pictures)
    ]


def _gridded(
    pictures: Sequence[Image.Image], grids: Sequence[tuple[int, int, int]]
) -> Iterator[Place]:
    """Pictures, or frames of one, that follow one another: (frames, rows, columns) of each."""
    first = 0
    for number, (picture, (frames, rows, columns)) in enumerate(zip(pictures, grids, strict=True)):
        for frame in range(frames):
            tokens = tuple(range(first, first + rows * columns))
            part = f"frame {frame + 1}" if frames > 1 else ""
            yield Place(_title(number, part), picture, tokens, (rows, columns))
            first += rows * columns


def _merged(
    loaded: Loaded, inputs: Mapping[str, Any], pictures: Sequence[Image.Image]
) -> list[Place]:
    grids: list[list[int]] = inputs["image_grid_thw"].tolist()
    if "image_merge_sizes" in inputs:
        merges = inputs["image_merge_sizes"].tolist()
    else:
        merges = [loaded.anatomy.config.vision_config.spatial_merge_size] * len(grids)
    cells = [
        (frames, high // merge, wide // merge)
        for (frames, high, wide), merge in zip(grids, merges, strict=True)
    ]
    return list(_gridded(pictures, cells))


def _sized(
    loaded: Loaded, inputs: Mapping[str, Any], pictures: Sequence[Image.Image]
) -> list[Place]:
    config = loaded.anatomy.config
    side = config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1)
    sizes: list[list[int]] = inputs["image_sizes"].tolist()
    return list(_gridded(pictures, [(1, high // side, wide // side) for high, wide in sizes]))


def _any_resolution(
    loaded: Loaded, inputs: Mapping[str, Any], pictures: Sequence[Image.Image]
) -> list[Place]:
    """An overview of side x side tokens; then the detail's rows, a newline token after each."""
    config = loaded.anatomy.config
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    together = int(inputs["batch_num_images"][0]) if "batch_num_images" in inputs else 1
    found: list[Place] = []
    first = 0
    for number, (picture, size) in enumerate(
        zip(pictures, inputs["image_sizes"].tolist(), strict=True)
    ):
        overview = tuple(range(first, first + side**2))
        found.append(Place(_title(number, "overview"), picture, overview, (side, side)))
        first += side**2
        high, wide = select_best_resolution(size, config.image_grid_pinpoints)
        tiles = (high // vision.image_size, wide // vision.image_size)
        if together > 1 or tiles == (1, 1):  # no detail, but a newline all the same
            found.append(Place(_title(number, "end"), None, (first,), None, _ENDS))
            first += 1
            continue
        rows, columns = _detail((tiles[0] * side, tiles[1] * side), size, config, side)
        starts = [first + row * (columns + 1) for row in range(rows)]
        cells = tuple(start + column for start in starts for column in range(columns))
        ends = tuple(start + columns for start in starts)
        found.append(Place(_title(number, "detail"), picture, cells, (rows, columns)))
        found.append(Place(_title(number, "row ends"), None, ends, None, _ENDS))
        first += rows * (columns + 1)
    return found


def _detail(canvas: Grid, size: Sequence[int], config: Any, side: int) -> Grid:
    """Rows and columns of a canvas of tokens that show the picture.

    The canvas has padding on two sides, whose tokens the model takes away. LLaVA-OneVision then
    scales down what has more tokens than `anyres_max_N` allows.
    """
    rows, columns = canvas
    high, wide = size
    if wide / high > columns / rows:
        rows -= (rows - int(round(high * columns / wide, 7))) // 2 * 2
    else:
        columns -= (columns - int(round(wide * rows / high, 7))) // 2 * 2
    limit = str(getattr(config, "vision_aspect_ratio", ""))
    if limit.startswith("anyres_max_"):
        ratio = sqrt(rows * columns / (int(limit.removeprefix("anyres_max_")) * side**2))
        if ratio > 1.1:
            return int(rows // ratio), int(columns // ratio)
    return rows, columns


def _tiled(
    loaded: Loaded, inputs: Mapping[str, Any], pictures: Sequence[Image.Image], visual: int
) -> list[Place]:
    """Tiles with the same number of tokens each, a square; perhaps with a class token before it."""
    tiles = _seen(loaded, inputs)
    each = visual // len(tiles)
    side = isqrt(each)
    skip = each - side**2  # tokens before the square
    if skip > 1 or each * len(tiles) != visual:
        return []
    found: list[Place] = []
    first = 0
    for number, (picture, count) in enumerate(
        zip(pictures, _tiles_of_each(loaded, pictures, len(tiles)), strict=True)
    ):
        mine = range(first, first + count)
        numbers = {t: tuple(range(t * each + skip, (t + 1) * each)) for t in mine}
        for part, rows_of_tiles in _arranged([tiles[t] for t in mine], picture):
            whole = _stitched([[tiles[first + t] for t in row] for row in rows_of_tiles])
            shown = picture if _difference(whole, picture) < _ALIKE else whole
            high, wide = len(rows_of_tiles), len(rows_of_tiles[0])
            # Row r of the picture crosses all tiles of a row of tiles: tokens are put in that order.
            grids = np.block(
                [
                    [np.reshape(numbers[first + t], (side, side)) for t in row]
                    for row in rows_of_tiles
                ]
            )
            cells = tuple(int(token) for token in grids.flatten())
            found.append(Place(_title(number, part), shown, cells, (high * side, wide * side)))
        if skip:
            marks = tuple(t * each for t in mine)
            found.append(Place(_title(number, "class tokens"), None, marks, None, _CLASS))
        first += count
    return found


def _tiles_of_each(loaded: Loaded, pictures: Sequence[Image.Image], total: int) -> list[int]:
    """Number of tiles of each picture, each processed alone if they may differ."""
    if len(pictures) == 1 or total == len(pictures):
        return [total // len(pictures)] * len(pictures)
    return [len(_pixels(loaded.inputs([picture], "?"))) for picture in pictures]


def _pixels(inputs: Mapping[str, Any]) -> Tensor:
    """What the tower is given (n 3 H W)."""
    name = "pixel_values" if "pixel_values" in inputs else "pixel_values_images"
    values: Tensor = inputs[name]
    return values.flatten(0, -4)


def _seen(loaded: Loaded, inputs: Mapping[str, Any]) -> list[Image.Image]:
    """Each tile as a picture, without the normalisation."""
    values = _pixels(inputs).float().cpu().numpy()
    made: Any = getattr(loaded.processor, "image_processor", None)
    if getattr(made, "do_normalize", False):
        mean, std = (np.reshape(v, (3, 1, 1)) for v in (made.image_mean, made.image_std))
        values = values * std + mean
    levels = (values.clip(0, 1) * 255).round().astype(np.uint8)
    return [Image.fromarray(level.transpose(1, 2, 0)) for level in levels]


def _arranged(
    tiles: Sequence[Image.Image], picture: Image.Image
) -> list[tuple[str, list[list[int]]]]:
    """Tiles by row and column, and the overview: the arrangement that looks most like the picture.

    Families put the overview first, last or nowhere, and number tiles row by row.

    Returns:
        (name of the part, numbers of its tiles row by row) of one part or two.
    """
    count = len(tiles)
    if count == 1:
        return [("", [[0]])]
    wanted = log(picture.width / picture.height)
    options = []
    for overview in (None, 0, count - 1):
        left = [t for t in range(count) if t != overview]
        for rows in (r for r in range(1, len(left) + 1) if len(left) % r == 0):
            columns = len(left) // rows
            parts = [left[r * columns : (r + 1) * columns] for r in range(rows)]
            whole = _stitched([[tiles[t] for t in row] for row in parts])
            unlike = _difference(whole, picture)
            if overview is not None:
                unlike = max(unlike, _difference(tiles[overview], picture))
            # Pictures of one colour look alike however they are cut; then the shape decides.
            shape = abs(log(whole.width / whole.height) - wanted)
            options.append((round(unlike, 3), shape, -1 if overview is None else overview, parts))
    _, _, overview, parts = min(options)
    found = [(f"{len(parts)} x {len(parts[0])} tiles", parts)]
    return found if overview < 0 else [*found, ("overview", [[overview]])]


def _stitched(tiles: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Rows of tiles as one picture."""
    return Image.fromarray(np.vstack([np.hstack([np.asarray(t) for t in row]) for row in tiles]))


def _difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of two pictures scaled to the same small size, in 0 to 1."""
    small = [
        np.asarray(p.resize((_THUMB, _THUMB), Image.Resampling.BOX), dtype=np.float32) / 255
        for p in (one, other)
    ]
    return float(np.abs(small[0] - small[1]).mean())


def _unnumbered(place: Place) -> Place:
    """With a title for a picture that is the only one."""
    part = place.title.removeprefix("Picture 1").removeprefix(", ")
    return replace(place, title=part.capitalize() or "Picture")
