"""Batches of every layout, how they are decoded, and how close equals must be."""

from __future__ import annotations

from typing import Any

import torch

from models.tiny import PATCH, SIDE, Batch, Layout
from oracles.cases import Case
from oracles.oracle import Oracle

TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 0.15, torch.float16: 0.03}


LAYOUTS = {
    "one": Layout(((3, 0, 5),)),
    "left": Layout(((3, 0, 5), (2, 0, 2), (6, 0, 1)), seed=1),
    "right": Layout(((3, 0, 5), (2, 0, 2)), left=False, seed=2),
    "several": Layout(((3, 0, 2, 0, 4), (5,), (2, 0, 0, 3)), seed=3),
    "image last": Layout(((3, 0), (2, 0, 3)), seed=4),
}


def oracles(family: str, data: Batch, cases: tuple[Case, ...], made: Any) -> list[Oracle]:
    side = None if family == "llava_next" else SIDE // PATCH
    speaking = [c.speaking for c in cases]
    return [Oracle(made, [c.chooser for c in cases], side, speaking=speaking) for _ in data.embeds]


def hooks(made: Any) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in made.modules())


DECODING = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 8},
    "beams": {"do_sample": False, "num_beams": 3},
    "several": {"do_sample": True, "num_return_sequences": 2},
    "beams of several": {"do_sample": False, "num_beams": 3, "num_return_sequences": 3},
    "no cache": {"do_sample": False, "use_cache": False},
}
