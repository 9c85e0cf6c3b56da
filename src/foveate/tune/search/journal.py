"""The record of a search, a line per trial.

What was found is never run again, however the search was stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...files import append_text, writing


class Journal:
    """JSON lines: first whose search it is, then a line per trial.

    Without a path it lives in memory.

    Args:
        path: of the file, or None.
        plan: everything that the result depends on; a file belongs to one plan.

    Raises:
        ValueError: the file belongs to another search, or is none.
    """

    def __init__(self, path: Path | None, plan: dict[str, Any]) -> None:
        self.path = path
        self.known: dict[str, Any] = {}
        lines: list[bytes] = []
        if path is not None and path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
        # A line cut short by a kill was never a trial.
        whole = [line for line in lines if line.endswith(b"\n")]
        if whole:
            self._read(path, whole, plan)
        if self.path is not None:
            if len(whole) != len(lines):
                with writing(self.path):
                    self.path.write_bytes(b"".join(whole))
            if not whole:
                self._append({"plan": plan})

    def _read(self, path: Path | None, lines: list[bytes], plan: dict[str, Any]) -> None:
        """Takes up what was found before.

        Raises:
            ValueError: the lines are no record of a search, or of another search.
        """
        try:
            first, *rows = (json.loads(line) for line in lines)
            theirs = first["plan"]
            self.known = {row["key"]: row["found"] for row in rows}
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is no record of a search: {error}; give another --out"
            ) from error
        ours = json.loads(json.dumps(plan))  # as it comes back from a file: lists, not tuples
        if theirs != ours:
            names = sorted(k for k in {*theirs, *ours} if theirs.get(k) != ours.get(k))
            raise ValueError(
                f"{path} is the record of another search (it differs in {', '.join(names)}); "
                "give another --out, or remove the file"
            )

    def add(self, key: str, found: Any) -> None:
        """Notes what a trial found; it is on the disk when this returns."""
        self.known[key] = found
        self._append({"key": key, "found": found})

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, run once and for all.

        It is for measurements that a restart must not take again.
        """
        if key not in self.known:
            self.add(key, make())
        return self.known[key]

    def _append(self, row: dict[str, Any]) -> None:
        """Writes a line and waits until it is on the disk."""
        if self.path is not None:
            append_text(self.path, json.dumps(row) + "\n")
