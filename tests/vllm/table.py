"""Writes docs/serving-families.md: what is proven under vLLM. `make vllm-families` renews it from the tests."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # vLLM reads it when it is imported

import parallel
import test_before
import test_exact
import tiny

from foveate.vllm.settings import drops_while_decoding, methods_of, tower_of, weighs

PAGE = Path(__file__).parents[2] / "docs" / "serving-families.md"
NOT_TESTED = {  # families that vLLM's CPU build runs on tiny random weights, or that Foveate refuses there
    "gemma3": "refused: sliding windows, images that see both ways",
}
HEAD = """# Families inside vLLM

`make vllm-families` generates this page from the tests that `make test-vllm` runs, and a test fails when it is out of
date. [Serving with vLLM](serving.md) says how to use it.

**Tested** means this, on a tiny random-weight model of the real configuration class, with vLLM 0.32 on a CPU. Tokens
are those of transformers with `foveate.apply`, and so are log-probabilities, up to the difference in the last column.
Each method is also shown to change something, but for those that may keep all. Numbers are of methods.

- **Inside**: alone, in a batch, with arrivals at different times, methods and plain text mixed, two images, after a
  preemption, and several answers to one prompt (tests/vllm/test_exact.py).
- **Before**: in a batch, with arrivals at different times, methods and plain text mixed, chunked prefill, prefix
  caching, two images, and after a preemption (tests/vllm/test_before.py).

**No GPU has run this.**

"""


def methods(family: str) -> list[str]:
    """What test_exact.py runs on a family, with a bundled predictor's name for its own."""
    texts = test_exact.EVERY if family == "llava" else test_exact.FEW
    found = [text.replace("PREDICTOR", "scenes-0.33-decode") for text in texts]
    if family in test_exact.WITHOUT_TOWER:
        found = [text for text in found if not tower_of(methods_of(text))]
    if family in test_exact.WITHOUT_WEIGHTS:
        found = [text for text in found if not weighs(text)]
    return found


def table() -> str:
    """The page."""
    lines = [
        HEAD
        + "| family | inside | of these look at the tower | weigh | drop while decoding | before | up to |",
        "|---|" + "---:|" * 6,
    ]
    for family in sorted(tiny.FAMILIES):
        if family not in test_exact.FAMILIES:
            lines.append(f"| {family} | {NOT_TESTED[family]} | | | | | |")
            continue
        run = methods(family)
        kinds = [
            run,
            [text for text in run if tower_of(methods_of(text))],
            [text for text in run if weighs(text)],
            [text for text in run if drops_while_decoding(text)],
            _before(family),
        ]
        cells = [str(len(found) or "") for found in kinds]
        lines.append(f"| {family} | {' | '.join(cells)} | {test_exact.FAMILIES[family]:g} |")
    some = [text.replace("PREDICTOR", "...") for text in test_exact.FEW]
    more = [
        text.replace("PREDICTOR", "...") for text in test_exact.EVERY if text not in test_exact.FEW
    ]
    short = [text for text in test_before.EVERY if text not in test_before.FEW]
    lines += [
        "",
        "An empty cell is not tested. Any other family is not tested either. It is refused at start",
        "where its layers or its attention are not of the known form.",
        "",
        f"- Inside, every family: {_code(some)}.",
        f"- Inside, llava alone: {_code(more)}.",
        f"- Before, every family of that column: {_code(test_before.FEW)}; llava alone: {_code(short)}.",
        *(
            f"- {way.capitalize()}, llava in two processes (tensor parallelism): {_code(texts)}."
            for way, texts in parallel.METHODS.items()
        ),
        "",
    ]
    return "\n".join(lines)


def _before(family: str) -> list[str]:
    """What test_before.py runs on a family."""
    if family not in test_before.FAMILIES:
        return []
    return test_before.EVERY if family == "llava" else test_before.FEW


def _code(texts: list[str] | tuple[str, ...]) -> str:
    return ", ".join(f"`{text}`" for text in texts)


if __name__ == "__main__":
    PAGE.write_text(table())
