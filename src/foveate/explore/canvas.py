"""matplotlib, loaded when a plot is wanted, without a screen."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from ..files import writing

COLORS = {"system": "#8c8c8c", "image": "#d1495b", "instruction": "#30638e", "response": "#edae49"}


def subplots(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure of `size` inches and its axes.

    Raises:
        ValueError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("plots need matplotlib; pip install 'foveate[plots]'")
    figure = importlib.import_module("matplotlib.figure").Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Any, path: Path) -> None:
    """Writes the figure; the ending says the format (png, svg, pdf).

    Raises:
        ValueError: there is no such folder, or no such format.
    """
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {path.parent}")
    with writing(path):
        figure.savefig(path, dpi=150)
