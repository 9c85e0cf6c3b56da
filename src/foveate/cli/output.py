"""Where the commands print."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from ..files import write_text

console = Console()
errors = Console(stderr=True)


def print_json(body: Any) -> None:
    """One JSON document on standard output; numbers that are no numbers become null."""
    print(json.dumps(_plain(body)))


def write_json(path: Path, body: Any, indent: int | None = None) -> None:
    """The same into a file."""
    write_text(path, json.dumps(_plain(body), indent=indent) + "\n")


def wrote(path: Path, what: str) -> None:
    """Says at a command's end which file or folder holds what; on standard error, beside any JSON."""
    errors.print(
        f"[dim]wrote[/dim] {escape(str(path))} [dim]({what})[/dim]", highlight=False, soft_wrap=True
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def flops(value: float) -> str:
    """FLOPs with a unit."""
    for unit in ("", "k", "M", "G", "T"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} P"
