"""Calibration data: images, prompts and the answers to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..engine.anatomy import Anatomy
from ..models import prompts
from ..models.images import check_image, open_image
from ..models.loaded import Loaded
from ..models.rows import CHATS, pictures_of, rows, turns_of
from ..world import language
from ..world.draw import draw
from ..world.scenes import Scene, sample


@dataclass(frozen=True)
class Example:
    """A prompt about images, with its answer. `images` loads the pictures when they are wanted.

    Attributes:
        earlier: former turns of the chat, (prompt, answer) each; the images belong to the first turn.
        kind: of prompt, where several are told apart.
    """

    images: Callable[[], list[Image.Image]]
    prompt: str
    answer: str
    earlier: tuple[tuple[str, str], ...] = ()
    kind: str = ""


@dataclass
class Examples:
    """Examples, and the rows of their source that were of no use, each with its reason."""

    rows: list[Example]
    unusable: list[str] = field(default_factory=list)


def scene_examples(
    split: str, count: int, start: int = 0, kinds: Sequence[str] = ("description", "caption")
) -> Examples:
    """Drawn scenes from number `start` on, asked for `kinds` in turn: description, caption, or a kind of question."""
    rows = []
    for index in range(start, start + count):
        scene = sample(split, index)
        kind = kinds[index % len(kinds)]
        if kind == "description":
            turn = language.Turn(kind, language.DESCRIPTION_PROMPTS[0], language.describe(scene))
        elif kind == "caption":
            turn = language.Turn(kind, language.CAPTION_PROMPTS[0], language.captions(scene)[0])
        else:
            asked = language.ask(scene, kind, np.random.default_rng((*scene.seed, 17)))
            if asked is None:
                continue
            turn = asked
        rows.append(Example(partial(_drawn, scene), turn.question, turn.answer, kind=kind))
    return Examples(rows)


def _drawn(scene: Scene) -> list[Image.Image]:
    return [draw(scene).image]


def file_examples(path: Path) -> Examples:
    """The examples of a data file, as `models.rows` reads it; paths are relative to the file.

    A row has ``image`` or ``images``, and ``prompt`` and ``response``, or a chat: ``conversations``,
    as LLaVA's data have them, or ``messages``. Every answer of a chat is an example, with the turns
    before it.

    Raises:
        ValueError: there is no such file, or not one usable row in it.
    """
    return _usable(_examples([path]), path, "row")


def folder_examples(folder: Path) -> Examples:
    """The examples of a folder's ``*.jsonl`` and ``*.json`` files, in the order of their names; see `file_examples`.

    Raises:
        ValueError: there are no such files, or not one usable row in them.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".jsonl"))
    if not files:
        raise ValueError(
            f"{folder} holds no .json or .jsonl file; expected chats of images, user and assistant"
        )
    return _usable(_examples(files), folder, "chat")


def _examples(files: Sequence[Path]) -> Examples:
    found = Examples([])
    for file in files:
        for number, row in rows(file):
            try:
                if isinstance(row, Exception):
                    raise row
                found.rows.extend(_of_row(row, file.parent))
            except (KeyError, TypeError, ValueError) as error:
                found.unusable.append(f"{file.name}:{number}: {type(error).__name__}: {error}")
    return found


def _usable(found: Examples, source: Path, what: str) -> Examples:
    """Raises ValueError if there are no examples."""
    if not found.rows:
        first = found.unusable[0] if found.unusable else "It is empty"
        raise ValueError(
            f"{source} has no usable {what}; expected image, prompt and response, or LLaVA's conversations. {first}"
        )
    return found


def _of_row(row: Any, folder: Path) -> list[Example]:
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {type(row).__name__}")
    names, sources = pictures_of(row, folder)
    if "prompt" not in row and any(name in row for name in CHATS):
        load = pictures(sources)
        turns = turns_of(row, len(names))
        return [
            Example(load, asked, answer, tuple(turns[:number]), str(row.get("kind", "")))
            for number, (asked, answer) in enumerate(turns)
        ]
    prompt, answer = row["prompt"], row["response"]
    if not names:
        raise KeyError("image")
    if not (isinstance(prompt, str) and isinstance(answer, str) and answer.strip()):
        raise ValueError("prompt and response must be text, the response not empty")
    return [Example(pictures(sources), prompt, answer, kind=str(row.get("kind", "")))]


def pictures(sources: Sequence[str | Path]) -> Callable[[], list[Image.Image]]:
    """What loads images when they are wanted; that they can be read is checked now.

    Raises:
        ValueError: one cannot.
    """
    for source in sources:
        check_image(source)
    return lambda: [open_image(source) for source in sources]


def encode(loaded: Loaded, examples: Sequence[Example]) -> tuple[dict[str, Tensor], int]:
    """The model's inputs for prompts with their answers, and how many columns the prompts take.

    Prompts are padded on the left, answers, which end in the end-of-sequence token, on the right. Positions are given,
    but to models that make their own.
    """
    pictures = [example.images() for example in examples]
    texts = [
        prompts.prompt(loaded.processor, len(p), e.prompt, earlier=e.earlier)
        for p, e in zip(pictures, examples, strict=True)
    ]
    tokenizer = loaded.tokenizer
    inputs = prompts.tensors(loaded.processor, pictures, texts)
    answers = [
        [*tokenizer(e.answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for e in examples
    ]
    prompt = int(inputs["input_ids"].shape[1])
    return answered(loaded.anatomy, inputs, answers, tokenizer.pad_token_id or 0), prompt


def answered(
    anatomy: Anatomy, inputs: dict[str, Tensor], answers: Sequence[Sequence[int]], pad: int
) -> dict[str, Tensor]:
    """The model's inputs for prompts, followed by answers.

    Args:
        anatomy: of the model.
        inputs: of the prompts, padded on the left.
        answers: the ids of each.
        pad: the id that fills up the shorter ones on the right.
    """
    ids = inputs["input_ids"]
    longest = max(map(len, answers))
    padded = torch.tensor(
        [[*a, *[pad] * (longest - len(a))] for a in answers], dtype=torch.long, device="cpu"
    )
    there = torch.tensor(
        [[1] * len(a) + [0] * (longest - len(a)) for a in answers], dtype=torch.long, device="cpu"
    )
    grown = {
        "input_ids": padded,
        "attention_mask": there,
        "token_type_ids": torch.full_like(padded, anatomy.adapter.said),
    }
    found = dict(inputs)
    for name, value in inputs.items():
        if value.shape == ids.shape:  # of a kind that is not in `grown`, as of pictures: 0 is text
            more = grown.get(name, torch.zeros_like(padded))
            found[name] = torch.cat([value, more.to(value)], 1)
    if not anatomy.places_itself:
        places = (found["attention_mask"].cumsum(1) - 1).clamp(min=0)
        found["position_ids"] = places + anatomy.adapter.first_position
    return found
