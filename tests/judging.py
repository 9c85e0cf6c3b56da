"""Figures of a model's answers, or of given ones, by the names that `foveate eval` has for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from foveate.core.method import Method
from foveate.cost.flops import Cost
from foveate.eval.answers import evaluate
from foveate.eval.records import Record
from foveate.eval.report import figures
from foveate.eval.tasks import Sample
from foveate.models.loaded import Loaded


def found(
    loaded: Loaded, samples: Sequence[Sample], methods: Sequence[Method] = ()
) -> dict[str, float]:
    """What the model's answers under the methods come to, in percent."""
    return _values(samples, evaluate(loaded, samples, "tested", methods, 32))


def judged(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, float]:
    """What these answers come to, in percent."""
    cost = asdict(Cost())
    pairs = enumerate(zip(samples, answers, strict=True))
    return _values(
        samples, [Record(i, 0, s.key, said, 1, 1, 2, [2, 1], 1, cost) for i, (s, said) in pairs]
    )


def _values(samples: Sequence[Sample], rows: Sequence[Record]) -> dict[str, float]:
    return {
        name: figure["value"]
        for name, figure in figures(samples, {"tested": rows}, "words")["tested"].items()
    }
