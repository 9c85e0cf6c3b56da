"""Prompts with answers for every family: what is taught, and then decoded."""

from __future__ import annotations

from typing import Any

import torch

from foveate.engine.anatomy import anatomy_of
from foveate.tune.examples import answered
from foveate.tune.train.dyrate.rollout import Batch
from models.families import FAMILIES
from models.prompts import Segment, prompt, together
from models.tiny import PAD, WORDS

ROWS: tuple[tuple[Segment, ...], ...] = ((3, "a", 5), (2, "b", 2, "a", 1), (6, "v", 2))
# Those left out are alike to others that run.
ALIKE = (
    "smolvlm",
    "glm46v",
    "glm_ocr",
    "qianfan_ocr",
    "deepseek_vl",
    "aya_vision",
    "idefics2",
    "got_ocr2",
    "janus",
)
PAIRS = [(name, backend) for name, family in FAMILIES.items() for backend in family.backends]
SLICE = [(name, FAMILIES[name].backends[0]) for name in FAMILIES if name not in ALIKE]


def asked(name: str) -> dict[str, Any]:
    """The inputs of a ragged batch of a family: pictures of two sizes, and a video where it takes any."""
    return together([prompt(name, row, seed) for seed, row in enumerate(ROWS)])


def followed(made: Any, inputs: dict[str, Any], answers: list[list[int]]) -> Batch:
    """Prompts with these answers."""
    whole = answered(anatomy_of(made), inputs, answers, PAD)
    return Batch(whole, inputs["input_ids"].shape[1])


def some_answers(samples: int, words: int) -> list[list[int]]:
    """Random answers, each a word shorter than the one before."""
    generator = torch.Generator().manual_seed(7)
    return [
        torch.randint(3, WORDS, (words - i,), generator=generator).tolist() for i in range(samples)
    ]
