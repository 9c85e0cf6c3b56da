"""What vLLM may not be configured for beside Foveate: refused before a worker starts, in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
from speaking import engine

pytestmark = pytest.mark.filterwarnings("default::FutureWarning")  # see test_exact.py


@pytest.fixture(scope="module")
def folder(saved: Path) -> Path:
    return tiny.save("llava", saved / "refused")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"enable_chunked_prefill": True}, "chunked prefill"),
        ({"enable_prefix_caching": True}, "prefix caching"),
        ({"enforce_eager": False}, "compiled decoder"),
        ({"pipeline_parallel_size": 2}, "pipeline parallelism"),
        ({"enable_lora": True}, "LoRA"),
        (
            {
                "additional_config": {
                    "foveate": {"method": "dyrate:predictor=scenes-0.33-decode,semantics=recompute"}
                }
            },
            "without a KV cache",
        ),
        ({"additional_config": {"foveate": {"method": "fastv:layer=9"}}}, "layers 0 to 5"),
    ],
)
def test_configurations(folder: Path, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        engine(folder, [], **options)
    assert str(caught.value).startswith("foveate: ") and "\n" not in str(caught.value)


def test_families_that_hooks_would_get_wrong(saved: Path) -> None:
    folder = tiny.save("gemma3", saved / "gemma3")
    with pytest.raises(ValueError, match=r"both ways|sliding window"):
        engine(folder, [])
