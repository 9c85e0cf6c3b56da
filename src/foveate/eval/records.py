"""Answers on disk as JSON lines: a run that was killed goes on, and several processes share one folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..files import append_text, read_text, write_text


@dataclass(frozen=True)
class Record:
    """One answer, and what it took.

    Attributes:
        sample: number of the sample in the run.
        batch: number of the batch that it was in.
        key: of the sample.
        answer: what was said.
        tokens: new tokens, the end-of-sequence token included.
        text: prompt tokens that are not visual.
        visual: visual tokens given.
        kept: visual tokens that each layer of the prefill saw.
        last: visual tokens alive in the last layer at the answer's last step.
        cost: parts of a `Cost`, tower not counted.
    """

    sample: int
    batch: int
    key: str
    answer: str
    tokens: int
    text: int
    visual: int
    kept: list[int]
    last: int
    cost: dict[str, float]


def place(folder: Path, spec: str) -> Path:
    """Folder of one method's answers."""
    mark = hashlib.sha256(spec.encode()).hexdigest()[:8]
    return folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', spec)[:60]}-{mark}"


def claim(folder: Path, identity: dict[str, Any]) -> None:
    """Writes what the folder's run is of, or checks that it is this run's.

    Raises:
        ValueError: the folder holds another run's answers; says in what they differ.
    """
    path = folder / "run.json"
    if path.is_file():
        there = _identity(path)
        other = [key for key in identity if there.get(key) != identity[key]]
        if other:
            found = ", ".join(f"{key} {there.get(key)!r} (now {identity[key]!r})" for key in other)
            raise ValueError(
                f"{folder} holds another run: {found}; give another folder, or the same options"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    write_text(part, json.dumps(identity, indent=1))
    part.replace(path)


def _identity(path: Path) -> dict[str, Any]:
    """What a folder's run is of."""
    try:
        return dict(json.loads(read_text(path)))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); give another folder") from error


def read(folder: Path, sizes: Sequence[int]) -> dict[int, list[Record]]:
    """Whole batches of one method by number; `sizes` are the samples of each. Torn lines and batches are left out."""
    found: dict[int, dict[int, Record]] = {}
    for path in sorted(folder.glob("process-*.jsonl")):
        for line in read_text(path).splitlines():
            with suppress(json.JSONDecodeError, TypeError):
                record = Record(**json.loads(line))
                found.setdefault(record.batch, {})[record.sample] = record
    return {b: list(rows.values()) for b, rows in sorted(found.items()) if len(rows) == sizes[b]}


def append(folder: Path, process: int, records: Sequence[Record]) -> None:
    """Adds one batch to this process's file, and waits until it is on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"process-{process}.jsonl"
    torn = path.is_file() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    append_text(path, "\n" * torn + "".join(json.dumps(asdict(r)) + "\n" for r in records))
