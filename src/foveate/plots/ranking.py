"""Whether layers rank visual tokens alike, and how many of them are essential."""

from __future__ import annotations

from pathlib import Path

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

    Raises:
        ValueError: matplotlib or the folder of `path` is missing.
    """
    figure, axes = subplots(1, 3, (15, 4))
    heat, shared, counts = axes[0]
    image = heat.imshow(tau, origin="lower", cmap="viridis", vmin=min(0.0, float(tau.min())), vmax=1)
    heat.set(xlabel="layer", ylabel="layer", title="Kendall's tau of the visual ranking")
    figure.colorbar(image, ax=heat)
    for place, (share, common) in enumerate(overlap.items()):
        steps = np.diagonal(common, 1)
        shared.plot(np.arange(1, len(tau)), 100 * steps, "o-", color=f"C{place}", label=f"top {share:.1%}")
        shared.axhline(100 * share, color=f"C{place}", linestyle=":", linewidth=1)
    shared.set(xlabel="layer", ylabel="% in common with the layer before", ylim=(0, 104), title="dotted: by chance")
    shared.legend(frameon=False)
    for row in essential[:64]:
        counts.plot(100 * row, color=COLORS["system"], alpha=0.25, linewidth=0.8)
    counts.plot(100 * essential.mean(0), "o-", color=COLORS["image"], linewidth=2)
    counts.set(xlabel="layer", ylabel=f"% of tokens that hold {mass:.0%}", ylim=(0, 104), title="essential tokens")
    figure.suptitle(title)
    save(figure, path)
