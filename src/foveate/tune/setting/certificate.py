"""What may be promised of a setting, by examples that it was not chosen on.

Losses are numbers in [0, 1], one for each picture. The promise is about their mean over all
pictures like these: "with confidence 1 - delta it is at most `risk`". It is a test of the
hypothesis that the mean is larger; the setting is certified if that is rejected.

Several settings are tested in a fixed sequence, each at the whole delta, until one fails: then the
chance that any certified setting breaks its promise is at most delta (learn then test, Angelopoulos
et al., arXiv 2110.01052; the promise itself is that of risk control, conformal risk control,
Angelopoulos et al., arXiv 2208.02814). The sequence must not depend on the examples of the test.

The tests are exact for every number of examples. Losses of 0 and 1 alone are binomial. For others
we bet against the hypothesis (Waudby-Smith and Ramdas, arXiv 2010.09686, section 4): a capital that
no bet can let grow, on average, if the hypothesis is true.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

Losses = Shaped[np.ndarray, " n"]  # numbers in [0, 1], or booleans

# Bets, as parts of the largest that cannot lose more than everything, and what share of the capital
# each has. The boldest is best where losses are rare, and has the most.
_BETS = ((1.0, 0.5), (0.75, 1 / 6), (0.5, 1 / 6), (0.25, 1 / 6))
_MOST = 64  # times the examples at hand: beyond, more of them are no advice


@dataclass(frozen=True)
class Promise:
    """What is to be certified.

    Attributes:
        risk: the largest mean loss to accept, in (0, 1).
        confidence: the chance that the promise holds, at least, in (0, 1).

    Raises:
        ValueError: a number out of range.
    """

    risk: float
    confidence: float = 0.95

    def __post_init__(self) -> None:
        for name in ("risk", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name):g}; expected a number in (0, 1)")

    @property
    def delta(self) -> float:
        """The chance that is left to a broken promise."""
        return 1 - self.confidence


@dataclass(frozen=True)
class Verdict:
    """One setting's test.

    Attributes:
        loss: mean of the examples' losses.
        pictures: how many there are.
        p: of the hypothesis that the mean over all pictures is above the risk.
        upper: with the same confidence, the mean over all pictures is at most this.
        holds: whether the promise is certified.
    """

    loss: float
    pictures: int
    p: float
    upper: float
    holds: bool


def p_value(losses: Losses, risk: float) -> float:
    """Of the hypothesis that the mean over all pictures is above `risk`.

    Whether losses are binary is a matter of the loss, not of chance: an array of booleans is.
    """
    if losses.dtype == bool:
        return _binomial(int(losses.sum()), len(losses), risk)
    return min(1.0, math.exp(-_capital(losses, risk)))


def _binomial(failures: int, count: int, risk: float) -> float:
    """Chance of so few failures, or fewer, of `count`, each of which has the chance `risk`."""
    if count == 0:
        return 1.0
    few = np.arange(failures + 1)
    ways = np.array(
        [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in few]
    )
    logs = ways + few * math.log(risk) + (count - few) * math.log1p(-risk)
    return float(min(1.0, np.exp(logs).sum()))


def _capital(losses: Losses, risk: float) -> float:
    """Logarithm of what a capital of 1 has become by betting that losses are below `risk`.

    Each bet c multiplies it by 1 + c (risk - loss) / (1 - risk), which is never below 0, and whose
    mean is at most 1 if the mean loss is `risk` or more. So the capital's mean is at most 1 then,
    and its inverse is a p-value (Markov).
    """
    bets, shares = (np.array(column) for column in zip(*_BETS, strict=True))
    grows = 1 + bets[:, None] * (risk - losses) / (1 - risk)  # (bets, n)
    with np.errstate(divide="ignore"):
        logs = np.log(np.maximum(grows, 0)).sum(1) + np.log(shares)
    most = logs.max()
    return float(most + np.log(np.exp(logs - most).sum())) if np.isfinite(most) else -math.inf


def upper(losses: Losses, confidence: float) -> float:
    """With this confidence, the mean over all pictures is at most this: the least risk whose
    hypothesis is rejected.
    """
    low = 0.0
    high = 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if p_value(losses, middle) <= 1 - confidence:
            high = middle
        else:
            low = middle
    return high


def judge(losses: Losses, promise: Promise) -> Verdict:
    """Tests one setting."""
    p = p_value(losses, promise.risk)
    mean = float(losses.mean()) if len(losses) else 1.0
    bound = upper(losses, promise.confidence)
    return Verdict(mean, len(losses), p, bound, p <= promise.delta)


def in_sequence(settings: Iterable[Callable[[], Losses]], promise: Promise) -> list[Verdict]:
    """Tests settings in their order, until one fails; what comes after is not run.

    Args:
        settings: each gives its losses on the examples of the test. Their order must have been
            fixed without these.
        promise: of each.
    """
    found = []
    for losses in settings:
        found.append(judge(losses(), promise))
        if not found[-1].holds:
            break
    return found


def least_pictures(promise: Promise, binary: bool) -> int:
    """Pictures that a setting needs that loses nothing on any: with fewer, nothing can be certified."""
    count = 1
    while p_value(_nothing(count, binary), promise.risk) > promise.delta:
        count *= 2
    low = count // 2
    while count - low > 1:
        middle = (low + count) // 2
        enough = p_value(_nothing(middle, binary), promise.risk) <= promise.delta
        low, count = (low, middle) if enough else (middle, count)
    return count


def _nothing(count: int, binary: bool) -> Losses:
    return np.zeros(count, dtype=bool if binary else np.float64)


def enough_pictures(losses: Losses, promise: Promise) -> int | None:
    """About how many pictures would certify the setting, if others were like these.

    Returns:
        None if no number would do: the mean is above the risk, or so near that it takes more than 64
        times as many.
    """
    if not len(losses):
        return least_pictures(promise, losses.dtype == bool)
    for times in range(1, _MOST + 1):
        if p_value(np.tile(losses, times), promise.risk) <= promise.delta:
            return times * len(losses)
    return None


def by_picture(losses: Sequence[float], groups: Sequence[str], binary: bool) -> Losses:
    """One loss for each picture, in the order of first appearance: the mean over what is asked of it.

    Questions about one picture are no examples of their own.

    Args:
        losses: of each question.
        groups: its picture.
        binary: whether losses are 0 or 1.

    Returns:
        Booleans, if losses are binary and no picture has two questions.
    """
    rows: dict[str, list[float]] = {}
    for loss, group in zip(losses, groups, strict=True):
        rows.setdefault(group, []).append(loss)
    means = np.array([sum(row) / len(row) for row in rows.values()])
    return means > 0.5 if binary and len(means) == len(losses) else means
