"""The package's own tasks: drawn scenes of a held-out split, and easy-vqa."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, count, groupby, islice

import numpy as np
from PIL import Image

from ...world import language
from ...world.draw import draw
from ...world.easyvqa import EasyVQA
from ...world.scenes import sample
from .sample import Sample

SPLITS = ("test", "val")  # the model was trained on pictures of the third, "train"
TITLES = {
    "descriptions object-recall": "object recall",
    "descriptions object-precision": "object precision",
    "descriptions exact": "exact descriptions",
    "captions cider": "CIDEr",
    **{f"questions/{kind} exact": kind for kind in language.KINDS},
    "easy-vqa exact": "easy-vqa",
}
"""What tables call the main figures of these tasks, in this order."""

_LONG, _SHORT = 64, 4


def _drawn(split: str, index: int) -> list[Image.Image]:
    return [draw(sample(split, index)).image]


def _descriptions(split: str, first: int) -> Iterator[Sample]:
    metrics = ("object-recall", "object-precision", "exact")
    prompt = language.DESCRIPTION_PROMPTS[0]
    for index in count(first):
        truth = (language.describe(sample(split, index)),)
        key = f"{split}-{index}"
        load = partial(_drawn, split, index)
        yield Sample(
            f"descriptions/{key}", "descriptions", load, prompt, truth, metrics, key, "", _LONG
        )


def _captions(split: str, first: int) -> Iterator[Sample]:
    metrics = ("cider", "bleu-4", "rouge-l")
    prompt = language.CAPTION_PROMPTS[0]
    for index in count(first):
        truth = tuple(language.captions(sample(split, index)))
        key = f"{split}-{index}"
        load = partial(_drawn, split, index)
        yield Sample(f"captions/{key}", "captions", load, prompt, truth, metrics, key, "", _LONG)


def _questions(split: str, first: int) -> Iterator[Sample]:
    """One question of every kind that a scene allows."""
    for index in count(first):
        scene = sample(split, index)
        key = f"{split}-{index}"
        rng = np.random.default_rng((*scene.seed, 13))
        for kind in language.KINDS:
            turn = language.ask(scene, kind, rng)
            if turn is not None:
                name = f"questions/{key}-{kind}"
                load = partial(_drawn, split, index)
                yield Sample(
                    name,
                    "questions",
                    load,
                    turn.question,
                    (turn.answer,),
                    ("exact",),
                    key,
                    kind,
                    _SHORT,
                )


def _easy_vqa(split: str, first: int) -> Iterator[Sample]:
    """Its own test split, whatever the split of the drawn scenes: it has no other that is held out."""
    data = EasyVQA.find()
    if data is None:
        raise ValueError(
            "easy-vqa is not installed; pip install 'foveate[eval]', or leave this task out"
        )
    for index in range(first, data.images("test")):
        for number, turn in enumerate(data.turns("test", index)[1]):
            yield Sample(
                f"easy-vqa/{index}-{number}", "easy-vqa", partial(_easy_picture, data, index), turn.question,
                (turn.answer,), ("exact",), f"easy-vqa-{index}", "", _SHORT,
            )  # fmt: skip


def _easy_picture(data: EasyVQA, index: int) -> list[Image.Image]:
    return [data.picture("test", index)]


TASKS: dict[str, Callable[[str, int], Iterator[Sample]]] = {
    "descriptions": _descriptions,
    "captions": _captions,
    "questions": _questions,
    "easy-vqa": _easy_vqa,
}


def bundled(
    names: Sequence[str],
    limit: int | None = None,
    first: int = 0,
    *,
    split: str = "test",
    pictures: int | None = None,
) -> list[Sample]:
    """The first samples of every named task, from picture number `first` on.

    Args:
        names: of tasks.
        limit: samples of each task. Questions on one picture may then be cut in the middle.
        first: number of the first picture.
        split: of the drawn scenes, one of `SPLITS`.
        pictures: of each task; all its samples on so many are taken, as far as `limit` allows.

    Raises:
        ValueError: there is no such task, split or picture, its data is not installed, or neither `limit` nor
            `pictures` ends the tasks, which are endless.
    """
    unknown = [name for name in names if name not in TASKS]
    if unknown:
        raise ValueError(
            f"unknown task {unknown[0]!r}; there are {', '.join(TASKS)}; a file of your own is --data"
        )
    if split not in SPLITS:
        raise ValueError(
            f"split {split!r}; expected {' or '.join(SPLITS)} (train was seen in training)"
        )
    if limit is None and pictures is None:
        raise ValueError(
            "neither limit nor pictures is given; the tasks are endless, so give one of them"
        )
    found: list[Sample] = []
    for name in names:
        by_picture = (
            list(some) for _, some in groupby(TASKS[name](split, first), key=lambda s: s.group)
        )
        some = list(islice(chain.from_iterable(islice(by_picture, pictures)), limit))
        if not some:
            raise ValueError(
                f"the task {name} has no picture of number {first}; start with a lower one"
            )
        found += some
    return found
