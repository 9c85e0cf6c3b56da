"""Kept patches over the image at successive steps, as DyRate's Figure 4 has them; and kept tokens over steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from ..inspect.kept import KeptSets
from .canvas import COLORS, save, subplots


def plot_kept(
    image: Image.Image, kept: KeptSets, words: list[str], title: str, path: Path, frames: int = 6
) -> None:
    """The image at `frames` steps, dropped patches darkened; beneath each, the words said by then.

    Args:
        image: the prompt's first image.
        kept: from `measure.kept.kept_sets`.
        words: the answer's tokens as text.
        title: above all.
        path: .png, .svg or .pdf.
        frames: steps to show, spread evenly from the prefill to the last.

    Raises:
        ValueError: the tokens form no grid, or matplotlib or the folder of `path` is missing.
    """
    if kept.grid is None:
        raise ValueError(
            "this family's tokens form no grid over the image, so there is nothing to lay over it"
        )
    rows, columns = kept.grid
    steps = np.unique(np.linspace(0, len(kept.alive) - 1, min(frames, len(kept.alive))).astype(int))
    figure, axes = subplots(1, len(steps), (2.6 * len(steps), 3.2))
    side = image.resize((columns * 16, rows * 16))
    for axis, step in zip(axes[0], steps, strict=True):
        alive = kept.alive[step, : rows * columns].reshape(rows, columns)
        shade = np.kron(np.where(alive, 1.0, 0.2), np.ones((16, 16)))[..., None]
        axis.imshow((np.asarray(side) * shade).astype(np.uint8))
        axis.set_title(f"step {step}: {alive.sum()} of {alive.size}", fontsize=9)
        said = " ".join(words[:step])
        axis.set_xlabel(said[-34:] if len(said) <= 34 else f"…{said[-33:]}", fontsize=7)
        axis.set(xticks=[], yticks=[])
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def plot_rates(shares: list[Float[np.ndarray, " S"]], title: str, path: Path) -> None:
    """Share of the visual tokens alive at each step: every answer, and their mean where three or more reach the step.

    Raises:
        ValueError: matplotlib or the folder of `path` is missing.
    """
    figure, axes = subplots(1, 1, (7, 4))
    axis = axes[0][0]
    for share in shares:
        axis.plot(share, color=COLORS["system"], alpha=0.35, linewidth=0.8)
    longest = max(map(len, shares))
    reached = [[s[step] for s in shares if len(s) > step] for step in range(longest)]
    mean = [np.mean(column) for column in reached if len(column) >= min(3, len(shares))]
    axis.plot(mean, color=COLORS["image"], linewidth=2, label=f"mean of {len(shares)} answers")
    axis.set(xlabel="step (0 = prefill)", ylabel="visual tokens alive", ylim=(0, 1.02), title=title)
    axis.legend(frameon=False)
    save(figure, path)
