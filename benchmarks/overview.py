"""Draws the picture of the README, and one of every method: tokens kept over a picture at three layers.

Kept tokens are what the bundled model really keeps. Quality against cost, in the README's picture, is read from
docs/results/. `python benchmarks/overview.py`
"""

from __future__ import annotations

import io
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from matplotlib.figure import Figure
from PIL import Image

import foveate
from foveate import Kind, View
from foveate.methods import parse

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "examples" / "scene.png"
SCHEDULE = "scenes-gsearch-weighted"
ASSETS = ROOT / "docs" / "assets"
LAYERS = (0, 3, 7)
BOTH = ",weigh=nearest,merge=mean"
LINES = {  # label -> color, and the methods that it joins
    "DivPrune, weighted and averaged": (
        "C0",
        [f"divprune:keep={k}{BOTH}" for k in (0.25, 0.125, 0.0625)],
    ),
    "DivPrune as published": ("C1", [f"divprune:keep={k}" for k in (0.25, 0.125, 0.0625)]),
    "FastV": ("C2", ["fastv:layer=2,keep=0.25"]),
    "random tokens": ("C7", ["random:layer=0,keep=0.25"]),
}
RECALL = "descriptions object-recall"


@torch.inference_mode()
def alive_by_layer(
    loaded: foveate.Loaded, spec: str
) -> tuple[Bool[np.ndarray, "L N"], tuple[int, int]]:
    """The visual tokens that each layer of the prefill runs on, and the grid that they form."""
    inputs = loaded.inputs([PICTURE], "describe the image in detail.")
    found: dict[int, np.ndarray] = {}
    grid: list[tuple[int, int]] = []

    def look(view: View) -> None:
        columns = view.tokens.are(Kind.IMAGE)[0].nonzero()[:, 0]
        found[view.layer] = torch.isin(columns, view.visual[0][view.mask[0]]).numpy()
        grid.append(view.tokens.grid)

    with foveate.apply(loaded.model, *parse(spec), watch=look):
        loaded.model(**inputs)
    # A view before layer l shows what layer l-1 ran on.
    return np.stack([found[layer + 1] for layer in range(len(found) - 1)]), grid[0]


def draw_overview(loaded: foveate.Loaded) -> Any:
    """Three pictures, and one plot."""
    figure = Figure(figsize=(11.0, 2.9), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.7))
    draw_kept(axes, *alive_by_layer(loaded, f"schedule:{SCHEDULE}"))
    quality(axes[3])
    return figure


def draw_method(loaded: foveate.Loaded, spec: str) -> Any:
    """Three pictures."""
    figure = Figure(figsize=(6.0, 2.2), layout="constrained")
    draw_kept(figure.subplots(1, 3), *alive_by_layer(loaded, spec))
    return figure


def draw_kept(axes: Any, alive: Bool[np.ndarray, "L N"], grid: tuple[int, int]) -> None:
    """The picture at three layers, what left darkened."""
    rows, columns = grid
    picture = Image.open(PICTURE).resize((columns * 16, rows * 16))
    for axis, layer in zip(axes, LAYERS, strict=False):
        kept = alive[layer].reshape(rows, columns)
        shade = np.kron(np.where(kept, 1.0, 0.3), np.ones((16, 16)))[..., None]
        axis.imshow((np.asarray(picture) * shade).astype(np.uint8))
        axis.set_title(f"layer {layer}: {kept.sum()} of {kept.size} tokens", fontsize=9)
        axis.set(xticks=[], yticks=[])


def quality(axis: Any) -> None:
    """Objects found against FLOPs, with 95 % intervals."""
    methods = json.loads((ROOT / "docs" / "results" / "weighting-answers-scenes.json").read_text())[
        "methods"
    ]
    plain = methods["unpruned"]["figures"][RECALL]["value"]
    axis.axhline(plain, color="grey", linewidth=0.8, linestyle="--")
    axis.text(1.0, plain + 1, "unpruned", color="grey", fontsize=8, ha="right")
    for label, (color, specs) in LINES.items():
        costs = [methods[spec]["work"]["flops"] for spec in specs]
        figures = [methods[spec]["figures"][RECALL] for spec in specs]
        values = np.array([figure["value"] for figure in figures])
        ends = [values - [f["low"] for f in figures], [f["high"] for f in figures] - values]
        axis.errorbar(
            costs, values, yerr=ends, color=color, marker="o", markersize=4, capsize=2, label=label
        )
    axis.set(
        xlabel="FLOPs, relative to unpruned",
        ylabel="objects found, %",
        xlim=(0.1, 1.02),
        ylim=(45, 100),
    )
    axis.legend(fontsize=8, loc="lower right", frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


def save(figure: Any, path: Path, dpi: int, colors: int) -> None:
    """Writes a small file: the drawings need few colors."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    Image.open(buffer).convert("RGB").quantize(colors, dither=Image.Dither.NONE).save(
        path, optimize=True
    )


def main() -> None:
    """Draws all of them."""
    loaded = foveate.load("scenes")
    save(draw_overview(loaded), ASSETS / "overview.png", 140, 200)
    (ASSETS / "methods").mkdir(exist_ok=True)
    pages = runpy.run_path(str(ROOT / "docs" / "pages.py"), run_name="pages")
    for name in pages["names"]():
        figure = draw_method(loaded, pages["example"](name))
        save(figure, ASSETS / "methods" / f"{name}.png", 96, 32)


if __name__ == "__main__":
    main()
