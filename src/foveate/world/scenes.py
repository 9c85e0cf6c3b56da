"""The world of drawn scenes: what can be in a picture, as a pure function of a seed.

A scene holds one to eight objects on a background. Every attribute that a text may mention
(shape, colour, texture, size, place) is sampled here with a margin, so that a truthful answer exists:
sizes come from three disjoint ranges, and no object's centre lies within `EDGE` pixels of a line that
separates two places. What is *not* mentioned (exact position, shade, rotation, strokes) varies freely.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

SIDE = 224  # pixels of a picture's side
PATCH = 16  # pixels of a visual token's side: 14 x 14 = 196 tokens
GRID = SIDE // PATCH
EDGE = 5  # pixels that a centre stays away from the lines between places

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 38, 38),
    "green": (36, 158, 56),
    "blue": (44, 76, 214),
    "yellow": (238, 206, 32),
    "orange": (244, 128, 24),
    "purple": (142, 58, 182),
    "brown": (122, 74, 36),
    "black": (24, 24, 24),
    "gray": (124, 124, 124),
    "teal": (0, 148, 152),
}
TEXTURES = ("plain", "striped", "dotted")
SIZES: dict[str, tuple[int, int]] = {"small": (14, 19), "medium": (27, 35), "large": (46, 58)}
PLACES = (
    *("top left", "top", "top right"),
    *("left", "center", "right"),
    *("bottom left", "bottom", "bottom right"),
)
BACKGROUNDS = ("plain", "shaded", "cluttered")
SPLITS = ("train", "val", "test")
MAX_OBJECTS = 8


@dataclass(frozen=True)
class Thing:
    """One object: its attributes in words, and where and how it is drawn (pixels, radians, 0-255 RGB)."""

    shape: str
    color: str
    texture: str
    size: str
    x: float
    y: float
    diameter: float
    angle: float
    rgb: tuple[int, int, int]

    @property
    def cell(self) -> int:
        """Index into `PLACES` of the ninth of the picture that holds the centre."""
        return int(self.y * 3 // SIDE) * 3 + int(self.x * 3 // SIDE)

    @property
    def place(self) -> str:
        """The ninth of the picture that holds the centre, in words."""
        return PLACES[self.cell]


@dataclass(frozen=True)
class Scene:
    """A picture's content. `things` are in reading order of their places, the order of descriptions."""

    things: tuple[Thing, ...]
    background: str
    seed: tuple[int, int]


def sample(split: str, index: int, *, most: int = MAX_OBJECTS) -> Scene:
    """The scene number `index` of `split`: the same arguments always give the same scene.

    Splits are disjoint by construction, since the split is part of the seed.

    Args:
        split: one of `SPLITS`.
        index: number of the scene, >= 0.
        most: upper bound on the number of objects (a curriculum lowers it while training).

    Raises:
        ValueError: unknown split, negative index, or `most` outside 1..8.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    if index < 0 or not 1 <= most <= MAX_OBJECTS:
        raise ValueError(
            f"got index={index}, most={most}; expected index >= 0 and most in 1..{MAX_OBJECTS}"
        )
    seed = (SPLITS.index(split), index)
    rng = np.random.default_rng(seed)
    wanted = int(rng.integers(1, most + 1))
    things: list[Thing] = []
    for cell in rng.permutation(9):
        if len(things) == wanted:
            break
        thing = _thing(rng, int(cell), things)
        if thing is not None:
            things.append(thing)
    return Scene(tuple(sorted(things, key=lambda t: t.cell)), str(rng.choice(BACKGROUNDS)), seed)


def _thing(rng: np.random.Generator, cell: int, others: list[Thing]) -> Thing | None:
    """An object whose centre lies in `cell`, overlapping the others a little at most; None if there is no room."""
    size = str(rng.choice(list(SIZES), p=[0.55, 0.27, 0.18]))
    low, high = SIZES[size]
    third = SIDE / 3
    for _ in range(12):
        diameter = float(rng.uniform(low, high))
        inset = max(
            EDGE, diameter / 2 + 1
        )  # only the picture's own border keeps a whole radius away
        lows = [EDGE if k else inset for k in (cell % 3, cell // 3)]
        highs = [third - (EDGE if k < 2 else inset) for k in (cell % 3, cell // 3)]
        x = cell % 3 * third + float(rng.uniform(lows[0], highs[0]))
        y = cell // 3 * third + float(rng.uniform(lows[1], highs[1]))
        if all(math.hypot(x - o.x, y - o.y) >= 0.42 * (diameter + o.diameter) for o in others):
            break
    else:
        return None
    color = str(rng.choice(list(COLORS)))
    rgb = tuple(int(np.clip(c + rng.integers(-12, 13), 0, 255)) for c in COLORS[color])
    return Thing(
        shape=str(rng.choice(SHAPES)),
        color=color,
        texture=str(rng.choice(TEXTURES, p=[0.5, 0.25, 0.25])),
        size=size,
        x=x,
        y=y,
        diameter=diameter,
        angle=float(rng.uniform(-0.2, 0.2)),
        rgb=rgb,  # type: ignore[arg-type]
    )
