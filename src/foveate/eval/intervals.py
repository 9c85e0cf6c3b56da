"""Intervals by bootstrap over pictures, and differences between two methods on the same ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

RESAMPLES = 2000
Value = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval, by the percentiles of a bootstrap.

    The ends are NaN where there is one picture only: it says nothing of others.
    """

    value: float
    low: float
    high: float


def _by_group(parts: Float[np.ndarray, "n k"], groups: Sequence[str]) -> Float[np.ndarray, "G k"]:
    """Sums over the samples of each group, in order of first appearance: questions on one picture are drawn as one."""
    number = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    sums = np.zeros((len(number), parts.shape[1]))
    np.add.at(sums, [number[group] for group in groups], parts)
    return sums


def _drawn(sums: Float[np.ndarray, "G k"], seed: int) -> Float[np.ndarray, "R k"]:
    """Totals of `RESAMPLES` samples of groups with replacement. The draws depend on seed and G alone."""
    rng = np.random.default_rng(seed)
    count = len(sums)
    pieces = [
        rng.multinomial(count, np.full(count, 1 / count), size=100) @ sums
        for _ in range(RESAMPLES // 100)
    ]
    return np.concatenate(pieces)


def estimate(
    parts: Float[np.ndarray, "n k"], groups: Sequence[str], value: Value, seed: int = 0
) -> Estimate:
    """The figure of all samples.

    Args:
        parts: what each sample adds to the figure's sums.
        groups: per sample, what is drawn as one.
        value: from sums to the figure.
        seed: of the draws.
    """
    sums = _by_group(parts, groups)
    point = float(value(sums.sum(0, keepdims=True))[0])
    return _interval(point, value(_drawn(sums, seed)), len(sums))


def weighted(
    values: Float[np.ndarray, " n"], weights: Float[np.ndarray, " n"], seed: int = 0
) -> Estimate:
    """The sum of the values over that of the weights, of samples that are drawn one by one.

    Args:
        values: what each sample adds above.
        weights: what it adds below; ones make the mean.
        seed: of the draws.
    """
    each = [str(number) for number in range(len(values))]
    return estimate(
        np.stack([values, weights], 1), each, lambda sums: sums[..., 0] / sums[..., 1], seed
    )


def difference(
    ours: Float[np.ndarray, "n k"],
    theirs: Float[np.ndarray, "n k"],
    groups: Sequence[str],
    value: Value,
    seed: int = 0,
) -> Estimate:
    """Our figure minus theirs on the same samples: both are computed on the same draws, so what they share cancels."""
    width = ours.shape[1]
    both = _by_group(np.concatenate([ours, theirs], 1), groups)
    drawn = _drawn(both, seed)
    whole = both.sum(0, keepdims=True)
    gap = float((value(whole[:, :width]) - value(whole[:, width:]))[0])
    return _interval(gap, value(drawn[:, :width]) - value(drawn[:, width:]), len(both))


def _interval(point: float, drawn: np.ndarray, groups: int) -> Estimate:
    there = drawn[np.isfinite(drawn)]
    if groups < 2 or not len(there):
        return Estimate(point, float("nan"), float("nan"))
    low, high = np.quantile(there, [0.025, 0.975])
    return Estimate(point, float(low), float(high))
