"""JSON files with a format and a version of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..files import read_text


def body_of(path: Path | str, what: str, kind: str, version: int, writer: str) -> dict[str, Any]:
    """What a file holds beside its format and version.

    Args:
        path: of a file that is there.
        what: it is, for errors, as "schedule".
        kind: the format that it must name.
        version: of the format that is read here.
        writer: the command that writes such files.

    Raises:
        ValueError: it cannot be read, is of another format, or of another version.
    """
    try:
        body = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read a {what} from {path}: {error}") from error
    if not isinstance(body, dict) or body.pop("format", None) != kind:
        raise ValueError(f"{path} is no {what}; expected JSON as `{writer}` writes it")
    found = body.pop("version", None)
    if found != version:
        raise ValueError(
            f"{path} is of version {found} of the format, this foveate reads {version}; update foveate"
        )
    return body
