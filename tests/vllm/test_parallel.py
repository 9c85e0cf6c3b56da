"""Tensor parallelism: two processes, each with half of the heads, take the same decisions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from parallel import METHODS


@pytest.mark.parametrize("way", METHODS)
def test_two_processes(saved: Path, way: str) -> None:
    script = Path(__file__).with_name("parallel.py")
    settings = {**os.environ, "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    done = subprocess.run(
        [sys.executable, str(script), str(saved / f"parallel-{way}"), way],
        env=settings, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    same = [line for line in done.stdout.splitlines() if line.startswith("same ")]
    assert len(same) == len(METHODS[way]), done.stderr[-2000:]
