"""`foveate inspect`: what a model looks at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from rich.progress import track

from ..core.features import TYPES
from ..explore.attention import plot_shares
from ..inspect.attention import attention_shares, mean_over_answers
from ..models.images import open_image
from ..models.load import load
from ..world import language
from ..world.draw import draw
from ..world.scenes import sample
from . import options
from .output import console, errors, print_json, wrote
from .sheet import Sheet

app = typer.Typer(help="What a model looks at, and where.", no_args_is_help=True)


@app.callback()
def inspect() -> None:
    """What a model looks at, and where."""


@app.command("attention")
def attention(
    images: Annotated[
        list[str] | None, typer.Argument(help="Images; held-out scenes if none is given.")
    ] = None,
    prompt: Annotated[
        str, typer.Option(help="Asked about every image.")
    ] = language.DESCRIPTION_PROMPTS[0],
    model: options.Model = "scenes",
    pictures: Annotated[
        int, typer.Option(min=1, help="Scenes to look at, where no image is given.")
    ] = 10,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    plot: Annotated[
        Path | None, typer.Option(help="Draw the shares to this .png, .svg or .pdf file.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Attention shares of system, image, instruction and response, by step and layer (DyRate, Figure 2)."""
    if plot is not None:
        options.check_picture(plot)
    looked_at = [open_image(path) for path in images] if images else _scenes(pictures)
    loaded = load(model, device=device, dtype=dtype)
    answers = []
    for picture in track(looked_at, "answering", console=errors, transient=True):
        inputs = loaded.inputs([picture], prompt)
        answers.append(attention_shares(loaded.model, inputs, max_new_tokens))
    shares = mean_over_answers(answers)
    reached = [sum(len(answer) > step for answer in answers) for step in range(len(shares))]
    if plot is not None:
        plot_shares(shares, f"{model}: {prompt} ({len(answers)} images)", plot)
    if as_json:
        names = [kind.name.lower() for kind in TYPES]
        body = {
            "model": model,
            "prompt": prompt,
            "images": len(answers),
            "types": names,
            "answers_at_step": reached,
        }
        print_json({**body, "shares": np.round(shares, 5).tolist()})
    else:
        console.print(_over_steps(shares, reached))
        console.print(_over_layers(shares))
    if plot is not None:
        wrote(plot, "attention shares by step and layer")


def _scenes(count: int) -> list[Image.Image]:
    return [draw(sample("val", index)).image for index in range(count)]


def _sheet(first: str, title: str, *more: str) -> Sheet:
    return Sheet(first, (*(kind.name.lower() for kind in TYPES), *more), title=title)


def _over_steps(shares: np.ndarray, reached: list[int]) -> Sheet:
    table = _sheet("step", "attention share in %, mean over layers and heads", "answers")
    last = len(shares) - 1
    for step in sorted(
        {s for s in (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if s < last} | {last}
    ):
        table.add(str(step), *(f"{100 * v:.1f}" for v in shares[step].mean(0)), str(reached[step]))
    return table


def _over_layers(shares: np.ndarray) -> Sheet:
    table = _sheet("layer", "\nattention share in %, mean over decode steps and heads")
    steps = shares[1:] if len(shares) > 1 else shares
    for layer, row in enumerate(steps.mean(0)):
        table.add(str(layer), *(f"{100 * v:.1f}" for v in row))
    return table
