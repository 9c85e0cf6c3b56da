"""Attention shares over steps and layers, as DyRate's Figure 2 has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float

from ..core.features import TYPES
from .canvas import COLORS, save, subplots


def plot_shares(shares: Float[np.ndarray, "S L 4"], title: str, path: Path) -> None:
    """Left: the four types over steps, mean over layers. Right: the image's share, step by layer.

    Raises:
        ValueError: matplotlib is not installed, or `path` cannot be written.
    """
    figure, axes = subplots(1, 2, (11, 4))
    over_steps, by_layer = axes[0]
    for column, kind in enumerate(TYPES):
        name = kind.name.lower()
        over_steps.plot(shares[:, :, column].mean(1), label=name, color=COLORS[name])
    over_steps.set(
        xlabel="step (0 = prefill)",
        ylabel="attention share, mean over layers and heads",
        ylim=(0, 1),
    )
    over_steps.legend(frameon=False)
    image = by_layer.imshow(shares[:, :, 1].T, aspect="auto", origin="lower", cmap="magma", vmin=0)
    by_layer.set(xlabel="step (0 = prefill)", ylabel="layer", title="share of the image")
    figure.colorbar(image, ax=by_layer)
    figure.suptitle(title)
    save(figure, path)
