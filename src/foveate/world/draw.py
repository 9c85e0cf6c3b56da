"""Drawing a scene: pixels, and which object owns each of them (for the tower's dense labels)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageDraw

from .scenes import SIDE, Scene, Thing

_OVERSAMPLE = 3  # outlines are drawn this much larger and averaged down: smooth edges
_PASTELS = np.array(
    [
        (250, 248, 240),
        (236, 244, 252),
        (252, 236, 240),
        (238, 250, 238),
        (246, 240, 252),
        (255, 250, 224),
    ],
    dtype=np.float32,
)


@dataclass(frozen=True)
class Drawing:
    """A drawn scene: `pixels` (H W 3), and `owner` (H W): the object seen at a pixel, -1 for background."""

    pixels: UInt8[np.ndarray, "H W 3"]
    owner: Int[np.ndarray, "H W"]

    @property
    def image(self) -> Image.Image:
        """The picture."""
        return Image.fromarray(self.pixels)


def draw(scene: Scene) -> Drawing:
    """Draws `scene`; the same scene always gives the same pixels. Small objects lie on top of large ones."""
    rng = np.random.default_rng((*scene.seed, 7))
    canvas = _background(scene.background, rng)
    owner = np.full((SIDE, SIDE), -1, dtype=np.int64)
    for index in sorted(range(len(scene.things)), key=lambda i: -scene.things[i].diameter):
        _paint(canvas, owner, index, scene.things[index], rng)
    noise = rng.integers(-5, 6, size=(SIDE, SIDE, 1), dtype=np.int16)
    pixels = np.clip(canvas + noise, 0, 255).astype(np.uint8)
    return Drawing(pixels, owner)


def _background(kind: str, rng: np.random.Generator) -> np.ndarray:
    first, second = _PASTELS[rng.choice(len(_PASTELS), 2, replace=False)]
    base = np.broadcast_to(first, (SIDE, SIDE, 3)).copy()
    if kind == "shaded" or (kind == "cluttered" and rng.random() < 0.5):
        turn = rng.uniform(0, 2 * math.pi)
        ys, xs = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) / SIDE - 0.5
        ramp = np.clip((xs * math.cos(turn) + ys * math.sin(turn)) / 1.2 + 0.5, 0, 1)[..., None]
        base = first * (1 - ramp) + second * 0.82 * ramp
    strokes = int(rng.integers(8, 15)) if kind == "cluttered" else int(rng.integers(0, 3))
    specks = int(rng.integers(25, 50)) if kind == "cluttered" else 0
    if not strokes and not specks:
        return base.astype(np.float32)
    picture = Image.fromarray(base.astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for _ in range(strokes):
        x, y = rng.uniform(0, SIDE, 2)
        turn = rng.uniform(0, 2 * math.pi)
        length = rng.uniform(20, 110)
        tone = tuple(int(v) for v in rng.integers(140, 215, 3))
        end = (x + length * math.cos(turn), y + length * math.sin(turn))
        pen.line([(x, y), end], fill=tone, width=int(rng.integers(1, 3)))
    for _ in range(specks):
        x, y = rng.uniform(0, SIDE, 2)
        tone = tuple(int(v) for v in rng.integers(120, 215, 3))
        pen.ellipse([x - 1.5, y - 1.5, x + 1.5, y + 1.5], fill=tone)
    return np.asarray(picture, dtype=np.float32).copy()


def _paint(
    canvas: np.ndarray, owner: np.ndarray, index: int, thing: Thing, rng: np.random.Generator
) -> None:
    half = math.ceil(thing.diameter / 2) + 2
    x0 = int(thing.x) - half
    y0 = int(thing.y) - half
    side = 2 * half + 1
    alpha = _outline(thing, side, thing.x - x0, thing.y - y0)
    left = max(0, -x0)
    top = max(0, -y0)
    right = min(side, SIDE - x0)
    bottom = min(side, SIDE - y0)
    alpha = alpha[top:bottom, left:right, None]
    window = (slice(y0 + top, y0 + bottom), slice(x0 + left, x0 + right))
    fill = _texture(thing, side, rng)[top:bottom, left:right]
    canvas[window] = canvas[window] * (1 - alpha) + fill * alpha
    owner[window][alpha[..., 0] > 0.5] = index


def _outline(thing: Thing, side: int, cx: float, cy: float) -> np.ndarray:
    """Coverage (side side) in [0, 1] of the object's outline, centred at (cx, cy)."""
    k = _OVERSAMPLE
    mask = Image.new("L", (side * k, side * k))
    pen = ImageDraw.Draw(mask)
    r = thing.diameter / 2
    if thing.shape in ("circle", "ring"):
        pen.ellipse([(cx - r) * k, (cy - r) * k, (cx + r) * k, (cy + r) * k], fill=255)
        if thing.shape == "ring":
            q = r * 0.52
            pen.ellipse([(cx - q) * k, (cy - q) * k, (cx + q) * k, (cy + q) * k], fill=0)
    else:
        cos = math.cos(thing.angle)
        sin = math.sin(thing.angle)
        corners = [
            ((cx + r * (x * cos - y * sin)) * k, (cy + r * (x * sin + y * cos)) * k)
            for x, y in _CORNERS[thing.shape]
        ]
        pen.polygon(corners, fill=255)
    return np.asarray(mask.reduce(k), dtype=np.float32) / 255


def _texture(thing: Thing, side: int, rng: np.random.Generator) -> np.ndarray:
    """Colours (side side 3) of the object's surface; stripes and dots are a light tint of its own colour."""
    color = np.array(thing.rgb, dtype=np.float32)
    light = color * 0.42 + 255 * 0.58
    ys, xs = np.mgrid[0:side, 0:side].astype(np.float32)
    if thing.texture == "striped":
        turn = rng.uniform(0, math.pi)
        wave = np.sin(
            (xs * math.cos(turn) + ys * math.sin(turn)) * (2 * math.pi / 6) + rng.uniform(0, 6)
        )
        pattern = wave > 0.1
    elif thing.texture == "dotted":
        u = (xs + rng.uniform(0, 6)) % 6 - 3
        v = (ys + rng.uniform(0, 6)) % 6 - 3
        pattern = u * u + v * v < 3.2
    else:
        pattern = np.zeros((side, side), dtype=bool)
    return np.where(pattern[..., None], light, color)


def _star() -> list[tuple[float, float]]:
    radii = [1.0, 0.42]
    turns = [math.pi * i / 5 - math.pi / 2 for i in range(10)]
    return [(radii[i % 2] * math.cos(a), radii[i % 2] * math.sin(a)) for i, a in enumerate(turns)]


def _heart() -> list[tuple[float, float]]:
    turns = [2 * math.pi * i / 28 for i in range(28)]
    xs = [math.sin(a) ** 3 for a in turns]
    ys = [
        -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16
        for a in turns
    ]
    return list(zip(xs, ys, strict=True))


_ARM = 0.36
_CORNERS: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)],
    "triangle": [(0.0, -1.0), (0.95, 0.75), (-0.95, 0.75)],
    "diamond": [(0.0, -1.0), (0.72, 0.0), (0.0, 1.0), (-0.72, 0.0)],
    "cross": [
        *((-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)),
        *((_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)),
    ],
    "star": _star(),
    "heart": _heart(),
}
