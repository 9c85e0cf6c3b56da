"""A sample for the explorer, made without a model: two methods, two panels, three layers."""

from __future__ import annotations

import numpy as np
from PIL import Image

from foveate.explore.record import data_uri
from foveate.explore.report import Panel, Run, Sample

LAYERS, STEPS, VISUAL = 3, 4, 14  # twelve tokens on a grid of 3 x 4, and two without a place


def picture() -> Image.Image:
    """Strong colours, so that grey is seen to be grey."""
    values = np.zeros((60, 80, 3), dtype=np.uint8)
    values[:, :40] = (220, 40, 30)
    values[:, 40:] = (20, 60, 210)
    return Image.fromarray(values)


def panels() -> tuple[Panel, ...]:
    return (
        Panel("Picture", data_uri(picture()), 80, 60, tuple(range(12)), (3, 4)),
        Panel("Row ends", "", 0, 0, (12, 13), None, "They have no place."),
    )


def run(name: str, reached: tuple[int, ...], unknown: str = "", steps: int = STEPS) -> Run:
    """The same at each step, but that the last one has lost token 0."""
    rows = (*[reached] * (steps - 1), (0, *reached[1:]))
    return Run(
        method=name,
        answer="a red thing",
        words=("a", " red", " thing", " </s>")[:steps],
        reached=rows,
        shares=tuple((0.5, 0.25, 0.1) for _ in rows),
        split=tuple((0.1, 0.1 * (t + 1), 0.3, 0.2) for t in range(steps)),
        attention=tuple(tuple(0.01 * i for i in range(VISUAL)) for _ in rows),
        flops=() if unknown else tuple([9e6, 1e6, 1e6, 1e6][:steps]),
        cache=() if unknown else tuple([4e5, 4.1e5, 4.2e5, 4.3e5][:steps]),
        unknown=unknown,
    )


def sample(title: str = "first", unknown: str = "") -> Sample:
    runs = (
        run("unpruned", (LAYERS,) * VISUAL, unknown),
        run("fastv:layer=1,keep=0.5", (3, 1) * 7, unknown),
        run("random:layer=0,keep=3", (0, 0, 0, 0, 3) * 2 + (0, 0, 0, 3), unknown, steps=3),
    )
    return Sample(title, "What is it?", LAYERS, panels(), runs, truth="a red & blue thing")
