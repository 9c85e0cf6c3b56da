"""`foveate inspect ranking`: whether layers rank visual tokens alike, which G-Search presumes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ..explore.ranking import plot_ranking
from ..models.load import load
from ..tune.examples import Example, file_examples, folder_examples, scene_examples
from ..tune.search.premise import MASS, Premise, premise
from . import options, tables
from .output import errors, print_json, wrote


def ranking(
    model: options.ModelName = "scenes",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Read examples from this file (JSON lines or a JSON list of image, prompt, response; or LLaVA's "
            "conversations), or from a folder of such files; else drawn scenes."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=2, help="Prompts to look at.")] = 32,
    by: options.Ranking = "last",
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    plot: Annotated[
        Path | None, typer.Option(help="Draw the agreement to this .png, .svg or .pdf file.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Kendall's tau of the visual ranking between layers, common top tokens, essential counts (2412.00556)."""
    if plot is not None:
        options.check_picture(plot)
    looked_at = _examples(data, samples)
    loaded = load(model, device=device, dtype=dtype)
    with errors.status("looking"):
        found = premise(loaded, looked_at, by)
    if plot is not None:
        title = f"{model}, ranking {by}, {len(found.essential)} prompts"
        plot_ranking(found.tau, found.overlap, found.essential, MASS, title, plot)
    if as_json:
        print_json({"model": model, "ranking": by, **as_dict(found)})
    else:
        tables.print_premise(found)
    if plot is not None:
        wrote(plot, "tau, common top tokens and essential counts by layer")


def _examples(data: Path | None, samples: int) -> list[Example]:
    if data is None:
        return scene_examples("train", samples).rows
    return (folder_examples(data) if data.is_dir() else file_examples(data)).rows[:samples]


def as_dict(found: Premise) -> dict[str, Any]:
    """The figures, as JSON has them."""
    return {
        "samples": len(found.essential),
        "tau": np.round(found.tau, 4).tolist(),
        "overlap": {
            str(share): np.round(common, 4).tolist() for share, common in found.overlap.items()
        },
        "essential_mass": MASS,
        "essential": [None if np.isnan(v) else round(float(v), 4) for v in found.essential.mean(0)],
        "growth": [
            {"layer": layer, "mean": mean, "low": low, "high": high}
            for layer, mean, low, high in found.growth()
        ],
        "warnings": found.warnings(),
    }
