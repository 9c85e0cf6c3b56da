"""`foveate export`: a bundled model as a folder that vLLM can serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..models.export import export
from .output import wrote


def export_model(
    model: Annotated[str, typer.Argument(help="scenes or smol.")],
    out: Annotated[Path, typer.Argument(help="A new folder.")],
) -> None:
    """Write a bundled model as a folder that vLLM and transformers load."""
    export(model, out)
    wrote(out, f"to serve it: foveate serve {out} --method METHOD")
