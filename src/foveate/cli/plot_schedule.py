"""`foveate plot schedule`: what searched schedules keep, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..artefacts.schedules import load_schedule
from ..explore.schedule import plot_schedules
from . import options
from .output import wrote


def schedule(
    files: Annotated[list[Path], typer.Argument(help="Files that `foveate search` wrote.")],
    out: options.PictureFile,
) -> None:
    """Visual tokens kept per layer, a staircase for every schedule."""
    options.check_picture(out)
    found = {path.stem: load_schedule(path) for path in files}
    models = ", ".join(dict.fromkeys(str(one.model.get("name", "")) for one in found.values()))
    plot_schedules({name: one.keep for name, one in found.items()}, models, out)
    wrote(out, f"{len(found)} schedules")
