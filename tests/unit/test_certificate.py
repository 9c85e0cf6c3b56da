"""Certificates: the promised risk is exceeded at most as often as promised, and something is certified."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from foveate.tune.setting.certificate import (
    Promise,
    by_picture,
    enough_pictures,
    in_sequence,
    judge,
    least_pictures,
    p_value,
    upper,
)

Draw = Callable[[np.random.Generator, int], np.ndarray]
DRAWS: dict[str, tuple[float, Draw]] = {  # the mean, and how losses come
    "binary": (0.1, lambda rng, n: rng.random(n) < 0.1),
    "rare and whole": (0.1, lambda rng, n: (rng.random(n) < 0.1).astype(float)),
    "often and small": (0.1, lambda rng, n: rng.random(n) * 0.2),
    "beta": (0.1, lambda rng, n: rng.beta(0.2, 1.8, n)),
    "halves": (0.1, lambda rng, n: 0.5 * (rng.random(n) < 0.2)),
}


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("count", [20, 150])
def test_the_promise_is_broken_at_most_as_often_as_it_may_be(kind: str, count: int) -> None:
    mean, draw = DRAWS[kind]
    times = 1500
    rng = np.random.default_rng(3)
    promise = Promise(mean - 1e-9, 0.9)  # the mean is just above: no certificate is right
    wrong = sum(p_value(draw(rng, count), promise.risk) <= promise.delta for _ in range(times))
    # 3.3 standard deviations above the tenth that is allowed: a right test passes it always
    assert wrong <= times * 0.1 + 3.3 * math.sqrt(times * 0.09)


@pytest.mark.parametrize("kind", DRAWS)
def test_the_upper_bound_covers_and_is_not_vacuous(kind: str) -> None:
    mean, draw = DRAWS[kind]
    rng = np.random.default_rng(4)
    bounds = [upper(draw(rng, 200), 0.95) for _ in range(120)]
    assert sum(bound < mean for bound in bounds) <= 120 * 0.05 + 3.3 * math.sqrt(120 * 0.0475)
    assert np.mean(bounds) < 2 * mean


def test_a_sequence_keeps_the_promise_for_all_its_settings_together() -> None:
    """Settings of rising risk, several of them wrong: it counts once if any wrong one is certified."""
    risks = [0.02, 0.06, 0.12, 0.13, 0.14, 0.15]
    promise = Promise(0.1, 0.9)
    rng = np.random.default_rng(5)
    wrong = cheaper = 0
    for _ in range(150):
        draws = [lambda r=risk: rng.random(120) < r for risk in risks]
        held = [test.holds for test in in_sequence(draws, promise)]
        wrong += any(held[2:])
        cheaper += held[0]
    assert wrong <= 150 * 0.1 + 3.3 * math.sqrt(150 * 0.09)
    assert cheaper > 140  # not vacuous: the first one is certified


def test_a_sequence_stops_at_the_first_failure_and_runs_no_more() -> None:
    ran = []

    def setting(name: str, loss: bool) -> Callable[[], np.ndarray]:
        def run() -> np.ndarray:
            ran.append(name)
            return np.full(100, loss)

        return run

    found = in_sequence(
        [setting("a", False), setting("b", True), setting("c", False)], Promise(0.05)
    )
    assert [test.holds for test in found] == [True, False]
    assert ran == ["a", "b"]


def test_binomial_p_values_are_exact() -> None:
    scipy = pytest.importorskip("scipy.stats")
    for count, failures, risk in ((59, 0, 0.05), (93, 1, 0.05), (500, 20, 0.05), (3, 3, 0.5)):
        losses = np.arange(count) < failures
        assert p_value(losses, risk) == pytest.approx(scipy.binom.cdf(failures, count, risk))


def test_without_a_single_loss_the_numbers_are_the_known_ones() -> None:
    assert least_pictures(Promise(0.05), binary=True) == 59  # ln 0.05 / ln 0.95
    assert least_pictures(Promise(0.01), binary=True) == 299
    assert 59 < least_pictures(Promise(0.05), binary=False) < 80


def test_how_many_would_do() -> None:
    promise = Promise(0.05)
    losses = np.arange(40) < 1  # one in 40: enough of them would do
    some = enough_pictures(losses, promise)
    assert some is not None and not judge(losses, promise).holds
    assert judge(np.tile(losses, some // 40), promise).holds
    assert enough_pictures(np.arange(40) < 3, promise) is None
    assert enough_pictures(np.zeros(0, dtype=bool), promise) == 59


def test_questions_about_one_picture_are_one_example() -> None:
    means = by_picture([1.0, 0.0, 0.0], ["a", "b", "a"], binary=True)
    assert means.dtype == np.float64 and means.tolist() == [0.5, 0.0]
    single = by_picture([1.0, 0.0], ["a", "b"], binary=True)
    assert single.dtype == bool and single.tolist() == [True, False]


@pytest.mark.parametrize(("risk", "confidence"), [(0.0, 0.95), (1.0, 0.95), (0.05, 1.0), (2, 0.5)])
def test_promises_out_of_range_are_refused(risk: float, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"expected a number in \(0, 1\)"):
        Promise(risk, confidence)
