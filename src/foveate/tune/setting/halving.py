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

from ...eval.divergence import Divergence, divergence, reference
from ...eval.tasks import Sample
from ...methods import parse
from ...models.loaded import Loaded
from ...processes import ALONE, Processes
from ..search.journal import Journal

FIRST = 8  # examples of the first round
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
        tick: called before each example with its number, and how many candidates run on it.
    """

    def __init__(
        self,
        loaded: Loaded,
        samples: Sequence[Sample],
        journal: Journal,
        among: Processes = ALONE,
        tick: Tick = lambda number, settings: None,
    ) -> None:
        self.loaded = loaded
        self.samples = samples
        self.journal = journal
        self.among = among
        self.tick = tick

    def run(self, candidates: Sequence[Candidate], count: int) -> None:
        """Brings every candidate that the model can run to `count` examples."""
        for candidate in candidates:
            candidate.refused = self.journal.known.get(_refusal(candidate.spec), "")
        numbers = range(min((len(one.seen) for one in candidates), default=count), count)
        mine = [n for i, n in enumerate(numbers) if i % self.among.count == self.among.index]
        new: dict[str, Any] = {}
        for number in mine:
            new |= self._example(number, candidates)
        if self.among.count > 1:  # each brings its own: all must know, one writes
            for found in self.among.gather(new):
                for key, value in found.items():
                    if key not in self.journal.known:
                        self.journal.add(key, value)
        for candidate in candidates:
            candidate.refused = self.journal.known.get(_refusal(candidate.spec), "")
            if candidate.refused:
                continue
            keys = [_key(candidate.spec, sample) for sample in self.samples[:count]]
            candidate.seen = [Divergence(*self.journal.known[key]) for key in keys]

    def _example(self, number: int, candidates: Sequence[Candidate]) -> dict[str, Any]:
        """Runs one example under all candidates that have not seen it."""
        sample = self.samples[number]
        due = [
            one
            for one in candidates
            if not one.refused and _key(one.spec, sample) not in self.journal.known
        ]
        new: dict[str, Any] = {}
        if not due:
            return new
        self.tick(number, len(due))
        inputs = self.loaded.encode([(sample.images(), sample.prompt)], earlier=[sample.earlier])
        given = reference(self.loaded, inputs, sample.max_new_tokens)
        for one in due:
            try:
                found = tuple(divergence(self.loaded, given, parse(one.spec)))
                self._note(new, _key(one.spec, sample), found)
            except ValueError as refusal:  # a tower or backend that the method cannot work with
                one.refused = str(refusal)
                self._note(new, _refusal(one.spec), one.refused)
        return new

    def _note(self, new: dict[str, Any], key: str, found: Any) -> None:
        """Alone, a finding goes to the disk at once."""
        new[key] = found
        if self.among.count == 1:
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
            left = _best(left, lambda n, done=done: keep if done else max(keep, math.ceil(n / 2)))
            if done:
                return left
            count = min(2 * count, len(self.samples))


def _best(candidates: Sequence[Candidate], many: Callable[[int], int]) -> list[Candidate]:
    """Those of the least divergence, as `many` of each cost as are to stay of so many."""
    found = []
    for level in sorted({one.level for one in candidates}):
        ours = sorted((one for one in candidates if one.level == level), key=lambda one: one.kl)
        found += ours[: many(len(ours))]
    return found


def _key(spec: str, sample: Sample) -> str:
    return f"divergence {spec} {sample.key}"


def _refusal(spec: str) -> str:
    return f"refused {spec}"
