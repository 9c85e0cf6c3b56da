"""Successive halving: candidates of equal cost run on more and more examples, and half of them stays.

The measure is smooth: the divergence from the unpruned model's next-token probabilities, teacher
forced on its own answer. One forward scores an example, and a few examples tell methods apart
(Jamieson and Talwalkar, arXiv 1502.07943).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...eval.divergence import Divergence
from ...eval.tasks import Sample
from ...methods import parse
from ...models.loaded import Loaded
from ...processes import ALONE, Processes
from ..search.journal import Journal
from .taught import Teacher

FIRST = 8  # examples of the first round, and of a batch
Tick = Callable[[int, int], None]


@dataclass
class Candidate:
    """A setting in the race.

    Attributes:
        spec: the method's text.
        level: index of the cost that it was tuned to.
        cost: over the unpruned model's.
        seen: what was found, in the order of the examples.
        refused: why the model cannot run it, if it cannot.
    """

    spec: str
    level: int
    cost: float
    seen: list[Divergence] = field(default_factory=list)
    refused: str = ""

    @property
    def kl(self) -> float:
        """Mean divergence, nats per token."""
        return float(np.mean([one.kl for one in self.seen])) if self.seen else math.inf

    @property
    def words(self) -> list[float]:
        """Of each example, the share of words of the answer that would be others."""
        return [1 - one.agreement for one in self.seen]


class Race:
    """Runs candidates on examples, once each, in whatever process.

    Args:
        loaded: the model.
        samples: examples, in the order in which rounds take them.
        journal: of what was found; the same in all processes.
        among: the processes that share the work.
        said: the unpruned model's answers, as `Teacher` has them.
        tick: called before each batch with its last example's number, and how many candidates run.
    """

    def __init__(
        self,
        loaded: Loaded,
        samples: Sequence[Sample],
        journal: Journal,
        among: Processes = ALONE,
        said: dict[str, list[int]] | None = None,
        tick: Tick = lambda number, settings: None,
    ) -> None:
        self.loaded = loaded
        self.said = {} if said is None else said
        self.samples = samples
        self.journal = journal
        self.among = among
        self.tick = tick

    def run(self, candidates: Sequence[Candidate], count: int) -> None:
        """Brings every candidate that the model can run to `count` examples."""
        self._know(candidates)
        teacher = Teacher(
            self.loaded,
            {one.spec: parse(one.spec)[0] for one in candidates if not one.refused},
            self.said,
        )
        batches = [range(at, min(at + FIRST, count)) for at in range(0, count, FIRST)]
        mine: dict[str, Any] = {}
        for numbers in batches[self.among.index :: self.among.count]:
            mine |= self._batch(numbers, candidates, teacher)
        for spec, reason in teacher.refused.items():
            self._note(mine, _refusal(spec), reason)
        if self.among.count > 1:  # each brings its own: all must know, one writes
            for found in self.among.gather(mine):
                for key in found.keys() - self.journal.known.keys():
                    self.journal.add(key, found[key])
        self._know(candidates)
        for one in candidates:
            if not one.refused:
                keys = [_key(one.spec, sample) for sample in self.samples[:count]]
                one.seen = [Divergence(*self.journal.known[key]) for key in keys]

    def _know(self, candidates: Sequence[Candidate]) -> None:
        """Takes up which of them were refused."""
        for one in candidates:
            one.refused = self.journal.known.get(_refusal(one.spec), "")

    def _batch(
        self, numbers: range, candidates: Sequence[Candidate], teacher: Teacher
    ) -> dict[str, Any]:
        """Runs a batch of examples under all candidates that have not seen it."""
        samples = [self.samples[number] for number in numbers]
        due = [
            one.spec
            for one in candidates
            if not one.refused
            and one.spec not in teacher.refused
            and any(_key(one.spec, sample) not in self.journal.known for sample in samples)
        ]
        new: dict[str, Any] = {}
        if due:
            self.tick(numbers[-1], len(due))
            for spec, found in teacher.of(samples, due):
                for sample, one in zip(samples, found, strict=True):
                    self._note(new, _key(spec, sample), tuple(one))
        return new

    def _note(self, new: dict[str, Any], key: str, found: Any) -> None:
        """Alone, a finding goes to the disk at once."""
        new[key] = found
        if self.among.count == 1 and key not in self.journal.known:
            self.journal.add(key, found)

    def halve(self, candidates: Sequence[Candidate], keep: int) -> list[Candidate]:
        """Rounds of twice as many examples each, until all have been seen or `keep` are left at
        every cost.

        Returns:
            The survivors, who have seen all examples; at most `keep` of each cost.
        """
        left = list(candidates)
        count = min(FIRST, len(self.samples))
        while True:
            self.run(left, count)
            left = [one for one in left if not one.refused]
            done = count == len(self.samples)
            left = _best(left, keep, halved=not done)
            if done:
                return left
            count = min(2 * count, len(self.samples))


def _best(candidates: Sequence[Candidate], keep: int, halved: bool) -> list[Candidate]:
    """Of each cost the `keep` of the least divergence; the better half, if that is more and the
    race goes on.
    """
    found = []
    for level in sorted({one.level for one in candidates}):
        ours = sorted((one for one in candidates if one.level == level), key=lambda one: one.kl)
        found += ours[: max(keep, math.ceil(len(ours) / 2)) if halved else keep]
    return found


def _key(spec: str, sample: Sample) -> str:
    return f"divergence {spec} {sample.key}"


def _refusal(spec: str) -> str:
    return f"refused {spec}"
