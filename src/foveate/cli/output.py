"""Where the commands print."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console

console = Console()
errors = Console(stderr=True)


def print_json(body: Any) -> None:
    """One JSON document on standard output; numbers that are no numbers become null."""
    print(json.dumps(_plain(body)))


def write_json(path: Path, body: Any, indent: int | None = None) -> None:
    """The same into a file."""
    path.write_text(json.dumps(_plain(body), indent=indent) + "\n")


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
