"""What a metric is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Tokenize = Callable[[Sequence[str]], list[str]]


@dataclass(frozen=True)
class Judged:
    """Answers to be judged: all of one task, in order.

    Attributes:
        answers: what was said.
        references: per answer.
        groups: per answer, which picture it is about.
        kinds: per answer.
        tokenize: texts to texts of words apart by blanks, for caption metrics.
    """

    answers: Sequence[str]
    references: Sequence[tuple[str, ...]]
    groups: Sequence[str]
    kinds: Sequence[str]
    tokenize: Tokenize


def share(sums: Float[np.ndarray, "R k"]) -> Float[np.ndarray, R]:
    """The first sum over the second, in percent; nan over nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return 100 * sums[..., 0] / sums[..., 1]


@dataclass(frozen=True)
class Metric:
    """A figure of a set of answers, on the scale that papers print (percent; MME in points).

    Attributes:
        parts: what every answer adds to, (n k); a figure depends on answers through sums of these alone.
        value: the figure from sums, (R k), one of every row.
        least: references that it needs.
    """

    parts: Callable[[Judged], np.ndarray]
    value: Callable[[np.ndarray], np.ndarray] = share
    least: int = 1

    def check(self, references: Sequence[str]) -> None:
        """Raises ValueError if there are too few references."""
        if len(references) < self.least:
            raise ValueError(
                f"this metric needs the answers of {self.least} annotators or more, got {len(references)} references; "
                "use exact where there is one right answer"
            )
