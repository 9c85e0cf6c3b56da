"""Whether layers rank visual tokens alike, and how many of them are essential."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from .canvas import COLORS, save, subplots


def plot_ranking(
    tau: Float[np.ndarray, "L L"],
    overlap: dict[float, Float[np.ndarray, "L L"]],
    essential: Float[np.ndarray, "S L"],
    mass: float,
    title: str,
    path: Path,
) -> None:
    """Kendall's tau between layers; what the top tokens of neighbouring layers have in common; essential counts.

    A ranking by places has no mass to share out, so no essential counts (not a number): then that panel is left out.

    Raises:
        ValueError: matplotlib or the folder of `path` is missing.
    """
    counted = bool(essential.size and np.isfinite(essential).all())
    panels = 3 if counted else 2
    figure, axes = subplots(1, panels, (5 * panels, 4))
    heat, shared = axes[0][:2]
    image = heat.imshow(
        tau, origin="lower", cmap="viridis", vmin=min(0.0, float(tau.min())), vmax=1
    )
    heat.set(xlabel="layer", ylabel="layer", title="Kendall's tau of the visual ranking")
    figure.colorbar(image, ax=heat)
    for place, (share, common) in enumerate(overlap.items()):
        steps = np.diagonal(common, 1)
        shared.plot(
            np.arange(1, len(tau)), 100 * steps, "o-", color=f"C{place}", label=f"top {share:.1%}"
        )
        shared.axhline(100 * share, color=f"C{place}", linestyle=":", linewidth=1)
    shared.set(
        xlabel="layer",
        ylabel="% in common with the layer before",
        ylim=(0, 104),
        title="dotted: by chance",
    )
    shared.legend(frameon=False)
    if counted:
        _plot_essential(axes[0][2], essential, mass)
    figure.suptitle(title)
    save(figure, path)


def _plot_essential(counts: Any, essential: Float[np.ndarray, "S L"], mass: float) -> None:
    """Each prompt's share of essential tokens, and their mean."""
    for row in essential[:64]:
        counts.plot(100 * row, color=COLORS["system"], alpha=0.25, linewidth=0.8)
    counts.plot(100 * essential.mean(0), "o-", color=COLORS["image"], linewidth=2)
    counts.set(
        xlabel="layer",
        ylabel=f"% of tokens that hold {mass:.0%}",
        ylim=(0, 104),
        title="essential tokens",
    )
