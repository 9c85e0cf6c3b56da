"""Searched schedules: what each layer keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .canvas import save, subplots


def plot_schedules(keep: Mapping[str, Sequence[float]], title: str, path: Path) -> None:
    """Share of the visual tokens that each layer runs with, a staircase per schedule.

    Raises:
        ValueError: matplotlib or the folder of `path` is missing.
    """
    figure, axes = subplots(1, 1, (7, 4))
    axis = axes[0][0]
    for place, (name, shares) in enumerate(keep.items()):
        edges = [layer - 0.5 for layer in range(len(shares) + 1)]
        axis.stairs(
            [100 * s for s in shares], edges, label=name, linewidth=2, alpha=0.85, color=f"C{place}"
        )
    axis.set(xlabel="layer", ylabel="visual tokens kept, %", ylim=(0, 104), title=title)
    axis.legend(frameon=False, fontsize=8)
    save(figure, path)
