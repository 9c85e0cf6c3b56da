"""What an example loses under a setting, against the unpruned model: a number in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...eval.metrics import PER_ANSWER, of_one
from ...eval.records import Record
from ...eval.tasks import Sample


@dataclass(frozen=True)
class Loss:
    """A loss of one example.

    Attributes:
        name: on the command line.
        binary: whether it is 0 or 1.
        sentence: what its mean is at most, with a place for the share in percent.
        of: from the example, the unpruned model's answer and the setting's; None where it is found
            from next-token probabilities, without generating.
    """

    name: str
    binary: bool
    sentence: str
    of: Callable[[Sample, Record, Record], float] | None


def _differs(sample: Sample, plain: Record, pruned: Record) -> float:
    """1 where the answer is another one, blanks aside."""
    return float(plain.answer.split() != pruned.answer.split())


def _falls(sample: Sample, plain: Record, pruned: Record) -> float:
    """By how much the answer is worse, in the metric in which it is most; 0 where it is better."""
    worst = 0.0
    for metric in judged_by(sample):
        was, now = (of_one(metric, row.answer, sample.references) for row in (plain, pruned))
        worst = max(worst, was - now)
    return worst


def judged_by(sample: Sample) -> list[str]:
    """The example's metrics that single answers have."""
    return [metric for metric in sample.metrics if metric in PER_ANSWER]


LOSSES = {
    loss.name: loss
    for loss in (
        Loss(
            "answers", True, "at most {share} of answers differ from the unpruned model's", _differs
        ),
        Loss(
            "words",
            False,
            "at most {share} of the words of an answer, on average, would be other words",
            None,
        ),
        Loss("score", False, "an answer's score falls by at most {share}, on average", _falls),
    )
}


def check(loss: Loss, samples: Sequence[Sample]) -> None:
    """Raises ValueError if some examples cannot be judged by this loss."""
    if loss.name != "score":
        return
    without = [sample.key for sample in samples if not judged_by(sample)]
    if without:
        raise ValueError(
            f"--loss-of score needs right answers and a metric that single answers have ({', '.join(PER_ANSWER)}); "
            f"{len(without)} of {len(samples)} examples have none, such as {without[0]}"
        )


def losses(
    loss: Loss, samples: Sequence[Sample], plain: Sequence[Record], pruned: Sequence[Record]
) -> list[float]:
    """Each example's loss, from answers.

    Raises:
        ValueError: the loss is not one of answers.
    """
    if loss.of is None:
        raise ValueError(f"{loss.name} is no loss of answers")
    rows = zip(samples, plain, pruned, strict=True)
    return [loss.of(sample, was, now) for sample, was, now in rows]
