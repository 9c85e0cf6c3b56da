"""The package's own tasks: drawn scenes of the held-out split, and easy-vqa."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice

import numpy as np
from PIL import Image

from ...world import language
from ...world.draw import draw
from ...world.easyvqa import EasyVQA
from ...world.scenes import sample
from .sample import Sample

_LONG, _SHORT = 64, 4


def _drawn(split: str, index: int) -> list[Image.Image]:
    return [draw(sample(split, index)).image]


def _descriptions(first: int) -> Iterator[Sample]:
    metrics = ("object-recall", "object-precision", "exact")
    index = first
    while True:
        truth, key = (language.describe(sample("test", index)),), f"test-{index}"
        prompt = language.DESCRIPTION_PROMPTS[0]
        load = partial(_drawn, "test", index)
        yield Sample(f"descriptions/{key}", "descriptions", load, prompt, truth, metrics, key, "", _LONG)
        index += 1


def _captions(first: int) -> Iterator[Sample]:
    metrics = ("cider", "bleu-4", "rouge-l")
    index = first
    while True:
        truth, key = tuple(language.captions(sample("test", index))), f"test-{index}"
        prompt = language.CAPTION_PROMPTS[0]
        load = partial(_drawn, "test", index)
        yield Sample(f"captions/{key}", "captions", load, prompt, truth, metrics, key, "", _LONG)
        index += 1


def _questions(first: int) -> Iterator[Sample]:
    """One question of every kind that a scene allows; `limit` counts questions, so scenes are cut in the middle."""
    index = first
    while True:
        scene, key = sample("test", index), f"test-{index}"
        rng = np.random.default_rng((*scene.seed, 13))
        for kind in language.KINDS:
            turn = language.ask(scene, kind, rng)
            if turn is not None:
                name, load = f"questions/{key}-{kind}", partial(_drawn, "test", index)
                yield Sample(name, "questions", load, turn.question, (turn.answer,), ("exact",), key, kind, _SHORT)
        index += 1


def _easy_vqa(first: int) -> Iterator[Sample]:
    data = EasyVQA.find()
    if data is None:
        raise ValueError("easy-vqa is not installed; pip install 'foveate[eval]', or leave this task out")
    for index in range(first, data.images("test")):
        for number, turn in enumerate(data.turns("test", index)[1]):
            yield Sample(
                f"easy-vqa/{index}-{number}", "easy-vqa", partial(_easy_picture, data, index), turn.question,
                (turn.answer,), ("exact",), f"easy-vqa-{index}", "", _SHORT,
            )  # fmt: skip


def _easy_picture(data: EasyVQA, index: int) -> list[Image.Image]:
    return [data.picture("test", index)]


TASKS: dict[str, Callable[[int], Iterator[Sample]]] = {
    "descriptions": _descriptions,
    "captions": _captions,
    "questions": _questions,
    "easy-vqa": _easy_vqa,
}


def bundled(names: Sequence[str], limit: int, first: int = 0) -> list[Sample]:
    """The first `limit` samples of every named task, from picture number `first` on.

    Raises:
        ValueError: there is no such task, or its data is not installed.
    """
    unknown = [name for name in names if name not in TASKS]
    if unknown:
        raise ValueError(f"unknown task {unknown[0]!r}; there are {', '.join(TASKS)}; a file of your own is --data")
    return [found for name in names for found in islice(TASKS[name](first), limit)]
