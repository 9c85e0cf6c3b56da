"""`foveate plot pareto`: quality against work, from reports of `foveate eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..explore.pareto import WORKS, front, lines, plot_pareto
from ..files import read_text
from . import options
from .output import console, wrote


def pareto(
    reports: Annotated[
        list[Path], typer.Argument(help="report.json of `foveate eval --save`; several budgets.")
    ],
    out: options.PictureFile,
    figure: Annotated[
        str, typer.Option(help="A figure of the reports.")
    ] = "descriptions object-recall",
    work: Annotated[str, typer.Option(help=f"One of {', '.join(WORKS)}.")] = "tokens",
) -> None:
    """A line for every method over its budgets, and the methods that no other beats on both quality and work."""
    options.check_picture(out)
    bodies = [_read(path) for path in reports]
    found = lines(bodies, figure, work)
    plot_pareto(
        found, figure, work, ", ".join(dict.fromkeys(str(b.get("model", "")) for b in bodies)), out
    )
    best = front(found)
    console.print("nothing beats", highlight=False)
    for name, points in found.items():
        for spent, value in (point for point in points if point in best):
            console.print(f"  {name}: {value:.1f} at {spent:.3f} of the {work}", highlight=False)
    wrote(out, f"{len(found)} methods")


def _read(path: Path) -> dict[str, Any]:
    """A report, or ValueError."""
    try:
        body = json.loads(read_text(path))
        _ = [(one["figures"], one["work"]) for one in body["methods"].values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no report of `foveate eval --save`: {error}") from error
    return dict(body)
