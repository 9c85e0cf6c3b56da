"""A user's own task: JSON lines of images, a prompt, references and a metric."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ...models.images import beside, check_image, open_image
from ..metrics import METRICS, named
from .sample import Sample

_KNOWN = (
    "image",
    "images",
    "prompt",
    "reference",
    "references",
    "metric",
    "kind",
    "group",
    "max_new_tokens",
    "key",
)


def from_file(path: Path, limit: int | None = None) -> list[Sample]:
    """Reads a JSON-lines file; paths of images are relative to it.

    Each line has ``image`` (or ``images``), ``prompt``, ``reference`` (or ``references``), ``metric`` (one or a list,
    see `METRICS`), and, if wanted, ``kind``, ``group`` (samples drawn as one in the bootstrap; by default those on the
    same images), ``max_new_tokens`` and ``key``.

    Args:
        path: of the file; its stem is the task's name.
        limit: samples, from the first line on; None for all.

    Raises:
        ValueError: there is no such file, it is empty, or a line is not of this form. Nothing is skipped.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    samples: list[Sample] = []
    for number, line in enumerate(path.read_text("utf-8-sig").split("\n"), 1):
        if line.strip() and (limit is None or len(samples) < limit):
            try:
                samples.append(_sample(json.loads(line), path, number))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path.name}:{number}: {error}") from error
    if not samples:
        raise ValueError(
            f"{path} has no rows; expected JSON lines of image, prompt, references and metric"
        )
    twice = len(samples) - len({s.key for s in samples})
    if twice:
        raise ValueError(
            f"{path.name}: {twice} keys are there twice; give every row its own, or none"
        )
    return samples


def _sample(row: Any, path: Path, number: int) -> Sample:
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {type(row).__name__}")
    unknown = [key for key in row if key not in _KNOWN]
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}; expected some of {', '.join(_KNOWN)}")
    names = _texts(row, "images", "image")
    references = _texts(row, "references", "reference")
    metrics = tuple(name for text in _texts(row, "metric", "metric") for name in named(text))
    prompt = row.get("prompt")
    longest = row.get("max_new_tokens", 64)
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"prompt={prompt!r}; expected text")
    if not isinstance(longest, int) or longest < 1:
        raise ValueError(f"max_new_tokens={longest!r}; expected a whole number, 1 or more")
    for name in metrics:
        METRICS[name].check(references)
    files = [beside(name, path.parent) for name in names]
    for file in files:
        check_image(file)
    group = str(row.get("group", "|".join(names)))
    key = str(row.get("key", number))
    load = partial(_load, files)
    return Sample(
        f"{path.stem}/{key}",
        path.stem,
        load,
        prompt,
        references,
        metrics,
        group,
        str(row.get("kind", "")),
        longest,
    )


def _texts(row: dict[str, Any], several: str, one: str) -> tuple[str, ...]:
    """Texts under `several`, or the one under `one`."""
    found = row[several] if several in row else row.get(one)
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or not found or not all(isinstance(text, str) for text in found):
        raise ValueError(f"{several}={found!r}; expected text or a list of texts")
    return tuple(found)


def _load(files: list[str | Path]) -> list[Image.Image]:
    return [open_image(file) for file in files]
