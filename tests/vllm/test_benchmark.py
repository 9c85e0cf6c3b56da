"""benchmarks/serving.py measures, and goes on where it stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serving.py"


def measured(save: Path, *more: str) -> dict[str, Any]:
    command = [
        sys.executable,
        str(SCRIPT),
        "--shape",
        "tiny-20m",
        "--no-defaults",
        "--save",
        str(save),
    ]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(save.read_text()))


def test_turns(tmp_path: Path) -> None:
    save = tmp_path / "serving.json"
    first = measured(save, "--load", "2x2", "--repeats", "1")
    [row] = first["rows"]
    names = {"plain", "plain again", "plugin loaded", "none", *row["caps"]} - set(row["against"])
    assert len(row["turns"]) == 1 and set(row["turns"][0]["runs"]) == names
    for run in row["turns"][0]["runs"].values():
        assert 0 < run["first"] < run["total"] and run["further"] > 0 and run["processor"] > 0
    second = measured(save, "--load", "2x2", "--repeats", "2")
    assert second["rows"][0]["turns"][0] == row["turns"][0]
    assert len(second["rows"][0]["turns"]) == 2
    assert measured(save, "--load", "2x2", "--repeats", "2") == second
