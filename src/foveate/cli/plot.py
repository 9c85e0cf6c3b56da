"""`foveate plot`: what a method keeps, over the image and over the steps."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.progress import track

from ..explore.kept import plot_kept, plot_rates
from ..inspect.kept import kept_sets
from ..methods import parse
from ..models.load import load
from ..world import language
from . import options
from .output import errors, wrote

app = typer.Typer(
    help="What a method keeps, as pictures; see also `foveate inspect attention --plot`."
)
Spec = Annotated[str, typer.Option(help="Such as fastv:layer=2,keep=0.5 or dyrate:predictor=...")]
Prompt = Annotated[str, typer.Option(help="Asked about the image.")]
Longest = Annotated[int, typer.Option(min=1, help="Longest answer.")]


@app.callback()
def plot() -> None:
    """What a method keeps, as pictures."""


@app.command("mask")
def mask(
    image: Annotated[
        str, typer.Argument(help="The image; or scene:N, the held-out scene number N.")
    ],
    method: Spec,
    out: options.PictureFile,
    prompt: Prompt = language.DESCRIPTION_PROMPTS[0],
    model: options.Model = "scenes",
    frames: Annotated[int, typer.Option(min=1, max=12, help="Steps to show.")] = 6,
    max_new_tokens: Longest = 64,
    device: options.Device = "cpu",
) -> None:
    """Kept patches over the image at successive steps (DyRate, Figure 4)."""
    options.check_picture(out)
    methods = parse(method)
    picture = options.picture(image)
    loaded = load(model, device=device)
    inputs = loaded.inputs([picture], prompt)
    kept = kept_sets(loaded.model, inputs, max_new_tokens, *methods)
    words = [loaded.decode([token]) for token in kept.answer]
    plot_kept(picture, kept, words, f"{model}, {method}", out, frames)
    wrote(out, f"{len(kept.alive)} steps, {kept.alive[0].sum()} to {kept.alive[-1].sum()} tokens")


@app.command("rate")
def rate(
    method: Spec,
    out: options.PictureFile,
    images: Annotated[
        list[str] | None, typer.Argument(help="Images; held-out scenes if none is given.")
    ] = None,
    prompt: Prompt = language.DESCRIPTION_PROMPTS[0],
    model: options.Model = "scenes",
    pictures: Annotated[int, typer.Option(min=1, help="Scenes, where no image is given.")] = 16,
    max_new_tokens: Longest = 64,
    device: options.Device = "cpu",
) -> None:
    """Share of the visual tokens alive at each step, answer by answer and on average."""
    options.check_picture(out)
    methods = parse(method)
    looked_at = [
        options.picture(name) for name in images or [f"scene:{index}" for index in range(pictures)]
    ]
    loaded = load(model, device=device)
    shares = []
    for picture in track(looked_at, "answering", console=errors, transient=True):
        inputs = loaded.inputs([picture], prompt)
        shares.append(kept_sets(loaded.model, inputs, max_new_tokens, *methods).alive.mean(1))
    plot_rates(shares, f"{model}, {method}", out)
    first, last = (sum(s[at] for s in shares) / len(shares) for at in (0, -1))
    told = f"{first:.0%} alive after the prefill, {last:.0%} at the end"
    wrote(out, f"{told}, mean of {len(shares)} answers")
