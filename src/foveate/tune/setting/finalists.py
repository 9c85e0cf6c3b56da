"""What is tested, in which order, and what is taken of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ...artefacts.tuned import SEARCHED
from .certificate import Losses, Promise, Verdict, in_sequence, judge, least_pictures

SEARCHED_FILE = "searched.json"  # of a tuning's folder: the schedule that was searched


@dataclass
class Finalist:
    """A setting that is tested.

    Attributes:
        spec: the method's text.
        cost: over the unpruned model's: in FLOPs or bytes, or in seconds where these are measured.
        losses: on the part that chooses, one for each picture.
        verdict: of the test on the other part; None where it was not reached.
        faster: times faster than the unpruned model, where it was measured.
        kinds: mean loss in the test, and the number of examples, by kind of question.
    """

    spec: str
    cost: float
    losses: np.ndarray
    verdict: Verdict | None = None
    faster: float | None = None
    kinds: dict[str, tuple[float, int]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The method's text; of the searched schedule not where it lies."""
        return SEARCHED if self.spec.endswith(f"/{SEARCHED_FILE}") else self.spec

    @property
    def loss(self) -> float:
        """Mean on the part that chooses."""
        return float(self.losses.mean())


def front(finalists: Sequence[Finalist]) -> list[Finalist]:
    """Those that no cheaper one beats in loss, from the most costly to the cheapest.

    Of equal losses all stay: few examples do not tell them apart, and the tests had better begin
    where the loss is surely small.
    """
    return sorted(
        (
            one
            for one in finalists
            if not any(other.cost <= one.cost and other.loss < one.loss for other in finalists)
        ),
        key=lambda one: -one.cost,
    )


def settled(
    finalists: Sequence[Finalist],
    unseen: Callable[[Finalist], Losses],
    promise: Promise,
    binary: bool,
) -> Finalist | None:
    """Tests finalists in their order, and takes the cheapest that holds.

    Where there are too few pictures to certify anything, it takes the cheapest whose loss is small
    enough on both parts, and its verdict does not hold.

    Args:
        finalists: as `front` orders them.
        unseen: a finalist's losses on pictures that nothing was chosen on.
        promise: of each.
        binary: whether these losses are 0 or 1.

    Returns:
        None where the unpruned model has to stay.
    """
    likely = [one for one in finalists if one.loss <= promise.risk]
    verdicts = in_sequence([partial(unseen, one) for one in likely], promise)
    for one, verdict in zip(likely, verdicts, strict=False):
        one.verdict = verdict
    held = [one for one in likely if one.verdict is not None and one.verdict.holds]
    if held:
        return min(held, key=lambda one: one.cost)
    tested = likely[0].verdict if likely else None
    if tested is None or tested.pictures >= least_pictures(promise, binary):
        return None
    for one in sorted(likely, key=lambda one: one.cost):
        one.verdict = one.verdict or judge(unseen(one), promise)
        if one.verdict.loss <= promise.risk:
            return one
    return None
