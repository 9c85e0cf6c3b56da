"""A user's own task: questions about images in JSON lines or a JSON list, or LLaVA's conversations."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ...models.images import check_image, open_image
from ...models.rows import CHATS, pictures_of, rows, turns_of
from ..metrics import METRICS, named
from .sample import Sample

_KNOWN = (
    "image",
    "images",
    "prompt",
    "reference",
    "references",
    "response",
    "metric",
    "kind",
    "group",
    "max_new_tokens",
    "key",
)
_LONGEST = 200  # characters of a picture's name in a group; a base64 text is longer


def from_file(path: Path, limit: int | None = None, metric: str | None = None) -> list[Sample]:
    """Reads a file of JSON lines or of one JSON list, in UTF-8 or UTF-16; paths of images are relative to it.

    Each row has ``image`` (or ``images``), ``prompt``, ``reference`` (or ``references``; texts or
    numbers), ``metric`` (one or a list, see `METRICS`), and, if wanted, ``kind``, ``group`` (samples
    drawn as one in the bootstrap; by default those on the same images), ``max_new_tokens`` and
    ``key``. In place of prompt and references it may have a chat (``conversations`` as in LLaVA's
    data, or ``messages``): each of its answers is then a sample of its own, with the turns before it
    as they are written. Further fields of such rows are ignored.

    Args:
        path: of the file; its stem is the task's name.
        limit: samples, from the first row on; None for all.
        metric: of rows that name none; several by commas.

    Raises:
        ValueError: there is no such file, it is empty, or a row is not of this form. Nothing is skipped.
    """
    samples: list[Sample] = []
    for number, found in _each(path, metric, judged=True):
        if limit is not None and len(samples) >= limit:
            break
        if isinstance(found, Exception):
            raise ValueError(_told(path, number, found)) from found
        samples += found
    if not samples:
        raise ValueError(
            f"{path} has no rows; expected JSON lines of image, prompt, references and metric"
        )
    twice = len(samples) - len({s.key for s in samples})
    if twice:
        raise ValueError(
            f"{path.name}: {twice} keys are there twice; give every row its own, or none"
        )
    return samples[:limit]


def prompts_in(path: Path, limit: int | None = None) -> tuple[list[Sample], list[str]]:
    """What a file asks, for runs that compare the model with itself, with and without right answers.

    Rows are those of `from_file`, but that they need no references and no metric: where they have
    both, answers can be judged too. Rows of no use are left out.

    Returns:
        The samples, and for each row that was left out where it is and why.

    Raises:
        ValueError: there is no such file, or not one usable row in it.
    """
    samples: list[Sample] = []
    unusable: list[str] = []
    for number, found in _each(path, None, judged=False):
        if limit is not None and len(samples) >= limit:
            break
        if isinstance(found, Exception):
            unusable.append(_told(path, number, found))
        else:
            samples += found
    if not samples:
        first = unusable[0] if unusable else "It is empty"
        raise ValueError(
            f"{path} has no usable row; expected JSON lines of image and prompt. {first}"
        )
    taken: dict[str, int] = {}
    for place, sample in enumerate(samples):  # keys name answers on disk
        taken[sample.key] = taken.get(sample.key, 0) + 1
        if taken[sample.key] > 1:
            samples[place] = replace(sample, key=f"{sample.key}#{taken[sample.key]}")
    return samples[:limit], unusable


def _each(
    path: Path, metric: str | None, judged: bool
) -> Iterator[tuple[int, list[Sample] | Exception]]:
    """The samples of every numbered row, or what is wrong with it."""
    for number, row in rows(path):
        try:
            if isinstance(row, Exception):
                raise row
            yield number, _samples(row, path, number, metric, judged)
        except (KeyError, TypeError, ValueError) as error:
            yield number, error


def _told(path: Path, number: int, error: Exception) -> str:
    """An error of a row in words, with its place."""
    said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return f"{path.name}:{number}: {said}"


def _samples(
    row: Any, path: Path, number: int, metric: str | None, judged: bool = True
) -> list[Sample]:
    """A row's samples; if they are not to be judged, references and metrics may be missing."""
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {type(row).__name__}")
    names, files = pictures_of(row, path.parent)
    if not names:
        raise ValueError("the row has no image; expected image or images")
    asked = _asked(row, len(names), judged)
    metrics = _metrics(row, metric) if judged or "metric" in row else ()
    longest = row.get("max_new_tokens", 64)
    if not isinstance(longest, int) or longest < 1:
        raise ValueError(f"max_new_tokens={longest!r}; expected a whole number, 1 or more")
    for prompt, references in asked:
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"prompt={prompt!r}; expected text")
        for name in metrics:
            METRICS[name].check(references)
    for file in files:
        check_image(file)
    key = str(row.get("key", number))
    first = Sample(
        f"{path.stem}/{key}",
        path.stem,
        partial(_load, files),
        "",
        (),
        metrics,
        str(row.get("group", "|".join(map(_short, names)))),
        str(row.get("kind", "")),
        longest,
    )
    return [
        replace(
            first,
            key=first.key if turn == 0 else f"{first.key}-{turn + 1}",
            prompt=prompt,
            references=references,
            earlier=tuple((before, answer) for before, (answer, *_) in asked[:turn]),
        )
        for turn, (prompt, references) in enumerate(asked)
    ]


def _asked(row: dict[str, Any], pictures: int, judged: bool) -> list[tuple[Any, tuple[str, ...]]]:
    """What is asked with its references, once or turn by turn."""
    if "prompt" not in row and any(name in row for name in CHATS):
        return [(prompt, (answer,)) for prompt, answer in turns_of(row, pictures)]
    unknown = [key for key in row if key not in _KNOWN]
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}; expected some of {', '.join(_KNOWN)}")
    told = [name for name in ("references", "reference", "response") if name in row]
    if not judged and not told:
        return [(row.get("prompt"), ())]
    return [(row.get("prompt"), _texts(row, "references", told[-1] if told else "reference"))]


def _metrics(row: dict[str, Any], default: str | None) -> tuple[str, ...]:
    """Names of the row's metrics."""
    if default is None and "metric" not in row:
        raise ValueError(
            f"the row names no metric; add one, or give --metric: one of {', '.join(METRICS)}"
        )
    given = (
        default.split(",")
        if default is not None and "metric" not in row
        else _texts(row, "metric", "metric")
    )
    return tuple(name for text in given for name in named(text.strip()))


def _short(name: str) -> str:
    """A picture's name; of a long one, as base64, its hash."""
    return name if len(name) <= _LONGEST else hashlib.sha256(name.encode()).hexdigest()[:16]


def _texts(row: dict[str, Any], several: str, one: str) -> tuple[str, ...]:
    """Texts under `several`, or the one under `one`; a number is its digits."""
    found = row[several] if several in row else row.get(one)
    listed: Sequence[Any] = found if isinstance(found, list) else [found]
    if not listed or not all(_is_text(text) for text in listed):
        raise ValueError(f"{several}={found!r}; expected text, a number, or a list of them")
    return tuple(map(str, listed))


def _is_text(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _load(files: list[str | Path]) -> list[Image.Image]:
    return [open_image(file) for file in files]
