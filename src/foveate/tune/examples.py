"""Calibration data: images, prompts and the answers to them."""

from __future__ import annotations

import json
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
from ..models.images import beside, check_image, open_image
from ..models.loaded import Loaded
from ..world import language
from ..world.draw import draw
from ..world.scenes import Scene, sample


@dataclass(frozen=True)
class Example:
    """A prompt about images, with its answer. `images` loads the pictures when they are wanted.

    Attributes:
        earlier: former turns of the chat, (prompt, answer) each; the images belong to the first turn.
    """

    images: Callable[[], list[Image.Image]]
    prompt: str
    answer: str
    earlier: tuple[tuple[str, str], ...] = ()


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
        rows.append(Example(partial(_drawn, scene), turn.question, turn.answer))
    return Examples(rows)


def _drawn(scene: Scene) -> list[Image.Image]:
    return [draw(scene).image]


def file_examples(path: Path) -> Examples:
    """A JSON-lines file of ``image`` (or ``images``), ``prompt`` and ``response``; paths are relative to the file.

    Raises:
        ValueError: there is no such file, or not one usable row in it.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    found = Examples([])
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.rows.append(_row(json.loads(line), path.parent))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            found.unusable.append(f"{path.name}:{number}: {type(error).__name__}: {error}")
    if not found.rows:
        first = found.unusable[0] if found.unusable else "it is empty"
        raise ValueError(
            f"{path} has no usable row; expected JSON lines of image, prompt and response. {first}"
        )
    return found


def _row(row: dict[str, Any], folder: Path) -> Example:
    names = row["images"] if "images" in row else [row["image"]]
    prompt = row["prompt"]
    answer = row["response"]
    if not (isinstance(prompt, str) and isinstance(answer, str) and answer.strip()):
        raise ValueError("prompt and response must be text, the response not empty")
    return Example(pictures([beside(name, folder) for name in names]), prompt, answer)


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
    padded = torch.tensor([[*a, *[pad] * (longest - len(a))] for a in answers])
    there = torch.tensor([[1] * len(a) + [0] * (longest - len(a)) for a in answers])
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
        found["position_ids"] = (found["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return found
