"""One question of a task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class Sample:
    """A prompt about images, and how its answer is judged.

    Attributes:
        key: names the sample within a run.
        task: the task's name.
        images: loads the pictures when they are wanted.
        prompt: what is asked.
        references: the answers that count as right, or that are compared with.
        metrics: names from `eval.metrics.METRICS`.
        group: what is drawn as one in the bootstrap, as all questions about one picture.
        kind: within the task; figures are given for each kind too, and MME's score adds them up.
        max_new_tokens: longest answer.
        earlier: former turns of the chat, (prompt, answer) each; the pictures belong to the first.
    """

    key: str
    task: str
    images: Callable[[], list[Image.Image]]
    prompt: str
    references: tuple[str, ...]
    metrics: tuple[str, ...]
    group: str
    kind: str = ""
    max_new_tokens: int = 64
    earlier: tuple[tuple[str, str], ...] = ()


def identity(samples: Sequence[Sample]) -> str:
    """A hash of all that is asked (pictures by their keys), so that runs on other data are told apart."""
    lines = (
        json.dumps(
            [s.key, s.prompt, s.references, s.metrics, s.group, s.kind, s.max_new_tokens]
            + [s.earlier] * bool(s.earlier)
        )
        for s in samples
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
