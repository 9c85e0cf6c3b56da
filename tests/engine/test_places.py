"""Where visual tokens lie: what changes in one corner of a picture changes the tokens there.

The towers' attention is switched off meanwhile, so that a token knows nothing but its own patches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.core.view import View
from foveate.engine.apply import apply
from foveate.inspect.places import Place, places
from foveate.models.load import load
from foveate.models.loaded import Loaded
from models.families import FAMILIES, model
from models.processors import PROCESSORS
from models.saved import save

SLICE = ("qwen2_5_vl", "internvl", "llava", "smolvlm", "gemma3", "llava_next", "ovis2")
RESAMPLED = ("idefics2",)
CORNERS = [(False, False), (False, True), (True, False), (True, True)]  # lower, right


def pictures() -> list[Image.Image]:
    """One wide and one high, of smooth noise."""
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        for size in ((40, 24), (20, 44))
    ]


def inverted(picture: Image.Image, lower: bool, right: bool) -> Image.Image:
    """With one corner inverted."""
    values = np.array(picture)
    high, wide = values.shape[0] // 2, values.shape[1] // 2
    corner = (
        slice(high, None) if lower else slice(high),
        slice(wide, None) if right else slice(wide),
    )
    values[corner] = 255 - values[corner]
    return Image.fromarray(values)


@contextmanager
def local(loaded: Loaded) -> Iterator[None]:
    """The tower without attention."""

    def nothing(module: Any, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] * 0, *output[1:])
        return output * 0

    parts = [
        part
        for whole in loaded.anatomy.vision
        for part in whole.modules()
        if type(part).__name__.endswith("Attention")
    ]
    handles = [part.register_forward_hook(nothing) for part in parts]
    yield
    for handle in handles:
        handle.remove()


def embedded(loaded: Loaded, given: list[Image.Image]) -> torch.Tensor:
    """What the decoder is given for each visual token (N D)."""
    inputs = loaded.inputs(given, "what is this ?")
    found: list[torch.Tensor] = []

    def watch(view: View) -> None:
        if view.layer == 0:
            found.append(view.states()[0].clone())

    with torch.no_grad(), local(loaded), apply(loaded.model, watch=watch):
        loaded.model(**inputs)
    return found[0]


def placed(loaded: Loaded, given: list[Image.Image]) -> list[Place]:
    inputs = loaded.inputs(given, "what is this ?")
    visual = int(loaded.anatomy.visual(inputs["input_ids"]).sum())
    found = places(loaded, inputs, given, visual)
    assert sorted(token for place in found for token in place.tokens) == list(range(visual))
    return found


def families() -> list[Any]:
    return [
        pytest.param(name, marks=[] if name in SLICE else [pytest.mark.slow]) for name in PROCESSORS
    ]


@pytest.mark.parametrize("name", families())
def test_a_changed_corner_changes_the_tokens_there(name: str, tmp_path: Path) -> None:
    loaded = load(str(save(name, tmp_path / name)))
    for part in loaded.anatomy.vision:
        for values in part.parameters():  # Gemma 3's projector is born with zeros
            if values.ndim > 1 and not values.any():
                torch.nn.init.normal_(values)
    given = pictures()
    found = placed(loaded, given)
    gridded = [place for place in found if place.grid is not None]
    if not gridded:
        assert name in RESAMPLED and all("resampled" in place.note for place in found)
        return
    assert {place.title.split(",")[0] for place in gridded} == {"Picture 1", "Picture 2"}
    plain = embedded(loaded, given)
    for number, picture in enumerate(given):
        for lower, right in CORNERS:
            other = [*given]
            other[number] = inverted(picture, lower, right)
            change = (embedded(loaded, other) - plain).norm(dim=1)
            for place in gridded:
                check(place, change, number, lower, right)


def check(place: Place, change: torch.Tensor, number: int, lower: bool, right: bool) -> None:
    assert place.grid is not None
    rows, columns = place.grid
    here = change[list(place.tokens)].reshape(rows, columns)
    if not place.title.startswith(f"Picture {number + 1}"):
        assert here.max() < 1e-3 * change.max(), f"{place.title} changed with another picture"
        return
    across = here.sum(0)
    down = here.sum(1)
    if columns > 1:
        half = columns // 2
        first, last = across[:half].sum(), across[columns - half :].sum()
        assert (last > 2 * first) if right else (first > 2 * last), (place.title, here)
    if rows > 1:
        half = rows // 2
        first, last = down[:half].sum(), down[rows - half :].sum()
        assert (last > 2 * first) if lower else (first > 2 * last), (place.title, here)


@pytest.mark.parametrize(
    ("name", "count"), [("got_ocr2", 16), ("cohere2_vision", 4), ("perception_lm", 32)]
)
def test_tiles_of_families_whose_processor_cannot_be_made_here(name: str, count: int) -> None:
    """Tiles in the user's own inputs: the same square of tokens each."""
    loaded = Loaded(model(name))
    family = FAMILIES[name]
    pixels = family.picture("a", 0)
    tiles = pixels["pixel_values"].flatten(0, -4)
    ids = torch.tensor([[3, *family.ids("a", count), 4]])
    given = [Image.fromarray(np.zeros((16, 16 * len(tiles), 3), dtype=np.uint8))]
    found = places(loaded, pixels, given, count)
    assert sum(place.grid[0] * place.grid[1] for place in found if place.grid) == count
    side = isqrt(count // len(tiles))

    def states(changed: dict[str, torch.Tensor]) -> torch.Tensor:
        seen: list[torch.Tensor] = []

        def watch(view: View) -> None:
            if view.layer == 0:
                seen.append(view.states()[0].clone())

        with torch.no_grad(), local(loaded), apply(loaded.model, watch=watch):
            loaded.model(input_ids=ids, **changed)
        return seen[0].reshape(len(tiles), side, side, -1)

    plain = states(pixels)
    half = tiles.shape[-1] // 2
    for tile in range(len(tiles)):
        for lower, right in CORNERS:
            other = tiles.clone()
            rows = slice(half, None) if lower else slice(half)
            columns = slice(half, None) if right else slice(half)
            other[tile, :, rows, columns] *= -3
            change = (states({"pixel_values": other.view_as(pixels["pixel_values"])}) - plain).norm(
                dim=-1
            )
            row, column = divmod(int(change[tile].argmax()), side)
            assert (row >= side // 2, column >= side // 2) == (lower, right)
            assert change[torch.arange(len(tiles)) != tile].sum() == 0
