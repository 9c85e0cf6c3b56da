"""Draws the picture of the README: tokens kept over a picture at three layers, and quality against cost.

The left part runs the bundled model, the right part reads docs/results/. `python benchmarks/overview.py`
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image

import foveate
from foveate import Kind, View
from foveate.methods import parse

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "examples" / "scene.png"
SCHEDULE = ROOT / "docs" / "results" / "search" / "scenes" / "gsearch-diverse-weighted-0.01.json"
OUT = ROOT / "docs" / "assets" / "overview.png"
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
def alive_by_layer() -> tuple[Bool[np.ndarray, "L N"], tuple[int, int]]:
    """The visual tokens that each layer of the prefill runs on, and the grid that they form."""
    loaded = foveate.load("scenes")
    inputs = loaded.inputs([PICTURE], "describe the image in detail.")
    found: dict[int, np.ndarray] = {}
    grid: list[tuple[int, int]] = []

    def look(view: View) -> None:
        columns = view.tokens.are(Kind.IMAGE)[0].nonzero()[:, 0]
        found[view.layer] = torch.isin(columns, view.visual[0][view.mask[0]]).numpy()
        grid.append(view.tokens.grid)

    with foveate.apply(loaded.model, *parse(f"schedule:{SCHEDULE}"), watch=look):
        loaded.model(**inputs)
    # A view before layer l shows what layer l-1 ran on.
    return np.stack([found[layer + 1] for layer in range(len(found) - 1)]), grid[0]


def draw() -> Any:
    """The figure: three pictures, and one plot."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra

    figure = Figure(figsize=(11.0, 2.9), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.7))
    alive, (rows, columns) = alive_by_layer()
    picture = Image.open(PICTURE).resize((columns * 16, rows * 16))
    for axis, layer in zip(axes, LAYERS, strict=False):
        kept = alive[layer].reshape(rows, columns)
        shade = np.kron(np.where(kept, 1.0, 0.3), np.ones((16, 16)))[..., None]
        axis.imshow((np.asarray(picture) * shade).astype(np.uint8))
        axis.set_title(f"layer {layer}: {kept.sum()} of {kept.size} tokens", fontsize=9)
        axis.set(xticks=[], yticks=[])
    quality(axes[3])
    return figure


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


if __name__ == "__main__":
    buffer = io.BytesIO()
    draw().savefig(buffer, format="png", dpi=140)
    few = (
        Image.open(buffer).convert("RGB").quantize(200)
    )  # a small file; the drawing has few colors
    few.save(OUT, optimize=True)
