"""`python -m lab language`: has smol kept the language of the model inside it?"""

from __future__ import annotations

import statistics
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape

from foveate.cli import options
from foveate.cli.output import console, print_json
from foveate.models.load import load
from foveate.models.smol.base import load_base
from lab.smol.language import language_kept


def language(
    model: Annotated[
        str, typer.Option(help="smol, or a folder that `python -m lab train smol` filled.")
    ] = "smol",
    as_json: options.Json = False,
) -> None:
    """Answers to plain questions without an image, by SmolLM2 as it came and with our update."""
    loaded = load(model)
    found = language_kept(loaded, load_base())
    divergence = statistics.fmean(kept.divergence for kept in found)
    agreement = statistics.fmean(kept.agreement for kept in found)
    if as_json:
        print_json(
            {
                "divergence": divergence,
                "agreement": agreement,
                "answers": [asdict(kept) for kept in found],
            }
        )
        return
    for kept in found:
        console.print(
            f"[bold]{escape(kept.question)}[/bold]\n  before: {escape(kept.before)}\n  now:    {escape(kept.now)}"
        )
    console.print(
        f"divergence {divergence:.3f} nats a word, same next word {agreement:.0%}", highlight=False
    )
