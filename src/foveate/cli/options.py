"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else.")]
Device = Annotated[str, typer.Option(help="Such as cpu or cuda:0.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Repeats = Annotated[int, typer.Option(min=1, help="Timed runs of each method; the median counts.")]
Methods = Annotated[
    list[str] | None,
    typer.Option("--method", help="Such as fastv:layer=2,keep=0.5 (keep=64 is a number of tokens). May be repeated."),
]
Match = Annotated[
    str | None, typer.Option(help="Equal work: flops=0.33 (or bytes=, tokens=) of unpruned; tunes keep, or knob=?.")
]
Also = Annotated[
    list[str] | None,
    typer.Option("--also", help="A method to run as it is beside those that --match tunes. May be repeated."),
]
PromptTokens = Annotated[int, typer.Option(min=1, help="Prompt tokens that are not visual.")]
Images = Annotated[int, typer.Option(min=0, help="Pictures of a sample.")]
ImageSize = Annotated[str | None, typer.Option(help="Of a picture in pixels, like 672x448, where tokens depend on it.")]
Tiles = Annotated[int, typer.Option(min=1, help="Of a picture, where the processor decides (InternVL, Idefics3).")]
VisualTokens = Annotated[int | None, typer.Option(min=0, help="Of a sample, in place of what the pictures make.")]
OutputTokens = Annotated[int, typer.Option(min=1, help="Tokens generated.")]
Batch = Annotated[int, typer.Option(min=1, help="Samples at once.")]
Layers = Annotated[int | None, typer.Option(min=1, help="Depth of the decoder, in place of the model's.")]


def size(text: str | None) -> tuple[int, int] | None:
    """Width and height from text like ``672x448``.

    Raises:
        ValueError: it is not of this form.
    """
    if text is None:
        return None
    wide, _, high = text.partition("x")
    if not (wide.isdecimal() and high.isdecimal() and int(wide) and int(high)):
        raise ValueError(f"image size {text!r}; expected width x height in pixels, like 672x448")
    return int(wide), int(high)


def writable(path: Path | None) -> None:
    """Raises ValueError if a file cannot be put there."""
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {path.parent}")
