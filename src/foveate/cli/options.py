"""Options that several commands share."""

from __future__ import annotations

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
