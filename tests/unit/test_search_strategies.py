"""What strategies find on oracles whose answer is known, and on oracles that are unreasonable."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate import ScheduleFile
from foveate.core.schedules import mean_keep
from foveate.tune.search.problem import Problem
from foveate.tune.search.strategies import knobs, search, settled, strategies
from foveate.tune.search.strategies.fitprune import fitprune
from foveate.tune.search.strategies.gsearch import bisected, galloped
from foveate.tune.search.strategies.psigmoid import sigmoid

GRID = 16


class Known:
    """A judge by a formula, with one example; counts what it is asked."""

    def __init__(self, quality: Callable[[tuple[float, ...]], float]) -> None:
        self.of, self.weights, self.asked, self.prefixes = quality, torch.ones(1), [], []
        self.groups = torch.zeros(1, dtype=torch.long)

    def hold(self, prefix: Sequence[float]) -> None:
        self.prefixes.append(tuple(prefix))

    def parts(
        self, keep: Sequence[float], floors: Sequence[float] | None = None
    ) -> torch.Tensor | None:
        self.asked.append(tuple(keep))
        value = self.of(tuple(keep))
        return (
            None
            if floors is not None and value < floors[0]
            else torch.tensor([value], dtype=torch.float64)
        )


def problem(
    quality: Callable[[tuple[float, ...]], float], layers: int, first: int = 0, seed: int = 0
) -> Problem:
    return Problem(Known(quality), mean_keep, layers, first, seed=seed)


def needs(essential: Sequence[int]) -> Callable[[tuple[float, ...]], float]:
    """Perfect while every layer has its essential tokens, else bad."""
    return lambda keep: (
        0.0 if all(k * GRID >= e - 1e-4 for k, e in zip(keep, essential, strict=True)) else -1.0
    )


counts = st.lists(st.integers(0, GRID), min_size=1, max_size=12).map(
    lambda xs: sorted(xs, reverse=True)
)


@given(counts, st.integers(0, 3))
@settings(max_examples=25)
def test_bisection_recovers_essential_counts_that_never_grow(
    essential: list[int], first: int
) -> None:
    first = min(first, len(essential) - 1)
    essential = [GRID] * first + essential[first:]
    given_ = problem(needs(essential), len(essential), first)
    keep = search("gsearch", given_, tolerance=0.5, grid=GRID)
    assert [round(k * GRID) for k in keep] == essential
    passes = needs(essential)
    for layer in range(first, len(keep)):  # nothing elementwise smaller passes
        assert (
            passes(tuple(max(k - (i == layer) / GRID, -1) for i, k in enumerate(keep))) == -1
            or not essential[layer]
        )
    judge = given_.judge
    assert isinstance(judge, Known) and len(judge.asked) == len(set(judge.asked)), (
        "no schedule is run twice"
    )
    assert all(
        trial[: len(p)] == p for p, trial in zip(judge.prefixes[:1], judge.asked, strict=False)
    )


def test_all_smaller_schedules_fail_and_trials_are_few() -> None:
    essential = [16, 16, 9, 9, 8, 3, 3, 0]
    given_ = problem(needs(essential), 8, 2)
    keep = search("gsearch", given_, tolerance=0.5, grid=GRID)
    passes = needs(essential)
    below = itertools.product(
        *[range(max(0, round(k * GRID) - 2), round(k * GRID) + 1) for k in keep[2:]]
    )
    smaller = [b for b in below if b != tuple(round(k * GRID) for k in keep[2:])]
    assert len(smaller) > 200
    assert all(passes((1.0, 1.0, *(b / GRID for b in some))) < 0 for some in smaller)
    assert given_.fresh < 1 + 6 * GRID.bit_length(), (
        "fewer trials than bisecting the grid anew at every layer"
    )


@given(st.integers(0, 40), st.integers(0, 40))
def test_galloping_equals_bisection(answer: int, more: int) -> None:
    most = answer + more
    assert (
        galloped(most, lambda x: x >= answer) == bisected(-1, most, lambda x: x >= answer) == answer
    )


def test_layers_of_a_stride_share_a_count_and_grow_never() -> None:
    essential = [16, 14, 9, 9, 5, 3, 2]
    keep = search("gsearch", problem(needs(essential), 7, 1), tolerance=0.5, grid=GRID, stride=3)
    assert [round(k * GRID) for k in keep] == [16, 14, 14, 14, 5, 5, 5]


@given(st.integers(0, 2**31), st.integers(1, 8))
@settings(max_examples=15)
def test_unreasonable_oracles_end_sanely(seed: int, layers: int) -> None:
    """Neither monotone nor smooth: the search ends in few trials, and what it returns has passed."""

    def quality(keep: tuple[float, ...]) -> float:
        if min(keep) == 1:
            return 0.0
        return float(np.random.default_rng([seed, *(int(1000 * k) for k in keep)]).normal())

    for variant in ("bisect", "bayes") if seed % 10 == 0 else ("bisect",):
        given_ = problem(quality, layers)
        keep = search("gsearch", given_, tolerance=0.3, grid=GRID, variant=variant, trials=3)
        assert quality(keep) >= -0.3
        assert all(a >= b for a, b in itertools.pairwise(keep))
        assert given_.fresh <= 1 + layers * 2 * GRID.bit_length()


def test_noise_costs_tokens_but_not_the_tolerance() -> None:
    essential = [16, 12, 12, 6, 4]

    def quality(keep: tuple[float, ...]) -> float:
        lacking = sum(max(0.0, e / GRID - k) for k, e in zip(keep, essential, strict=True))
        return -lacking + 0.02 * float(np.sin(1e4 * sum(k * (i + 1) for i, k in enumerate(keep))))

    keep = search("gsearch", problem(quality, 5), tolerance=0.05, grid=GRID)
    assert quality(keep) >= quality((1.0,) * 5) - 0.05
    assert mean_keep(keep) < 0.8


def test_the_bayesian_variant_weighs_quality_against_cost_and_still_passes() -> None:
    def quality(keep: tuple[float, ...]) -> float:
        return -sum((1 - k) ** 2 for k in keep) / len(keep)

    dear = search(
        "gsearch", problem(quality, 4), tolerance=1.0, variant="bayes", weight=0.01, trials=6
    )
    cheap = search(
        "gsearch", problem(quality, 4), tolerance=1.0, variant="bayes", weight=1.0, trials=6
    )
    tight = search(
        "gsearch", problem(quality, 4), tolerance=0.05, variant="bayes", weight=1.0, trials=6
    )
    assert mean_keep(cheap) < mean_keep(dear)
    assert quality(tight) >= -0.05


@given(
    st.integers(1, 33),
    st.integers(0, 3),
    st.floats(0.01, 8),
    st.floats(0, 0.3),
    st.floats(0.01, 1.0),
)
@settings(max_examples=20)
def test_a_sigmoid_meets_its_budget_and_falls(
    layers: int, first: int, slope: float, flat: float, part: float
) -> None:
    first = min(first, layers - 1)
    least = first / layers
    budget = least + part * (1 - least)
    floor = flat * part
    keep = sigmoid(problem(lambda keep: 0.0, layers, first), budget, slope, floor)
    assert abs(mean_keep(keep) - budget) < 2e-6
    assert all(a >= b for a, b in itertools.pairwise(keep)) and keep[:first] == [1.0] * first
    assert min(keep) >= floor - 1e-6


@pytest.mark.parametrize("name", ["psigmoid", "random"])
def test_budgeted_searches_meet_any_kind_of_budget(name: str) -> None:
    def quality(keep: tuple[float, ...]) -> float:
        return -sum(max(0.0, 0.9 - i / 8 - k) for i, k in enumerate(keep))

    def quadratic(keep: Sequence[float]) -> float:
        return sum(0.2 + 0.5 * k + 0.3 * k * k for k in keep) / len(keep)

    for cost in (mean_keep, quadratic):
        given_ = Problem(Known(quality), cost, 8, 2, seed=3)
        keep = search(name, given_, budget=0.55, trials=8)
        assert cost(keep) == pytest.approx(0.55, abs=2e-6)
        assert all(a >= b for a, b in itertools.pairwise(keep)) and keep[:2] == (1.0, 1.0)
        assert quality(keep) == max(quality(trial) for trial in given_.judge.asked)  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="out of reach"):
            search(name, given_, budget=0.1)


def test_psigmoid_tries_the_fit_of_a_schedule_first(tmp_path: Path) -> None:
    wanted = (1.0, 1.0, 0.95, 0.8, 0.4, 0.15, 0.05, 0.02)
    path = tmp_path / "g.json"
    ScheduleFile(wanted, "last", "sample", {"layers": 8}).save(path)

    def quality(keep: tuple[float, ...]) -> float:
        return -sum((a - b) ** 2 for a, b in zip(keep, wanted, strict=True))

    cold, warm = (problem(quality, 8, 2) for _ in range(2))
    search("psigmoid", cold, budget=mean_keep(wanted), trials=1)
    found = search("psigmoid", warm, budget=mean_keep(wanted), trials=1, warm=str(path))
    assert quality(found) > -0.02 > quality(cold.judge.asked[0])  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="8 layers, but this model has 5"):
        search("psigmoid", problem(quality, 5), budget=0.5, warm=str(path))


def test_vtw_takes_the_first_layer_that_passes_or_none() -> None:
    def quality(keep: tuple[float, ...]) -> float:
        return -1.0 / (1 + sum(k > 0 for k in keep)) if min(keep) < 1 else 0.0

    assert search("vtw", problem(quality, 6, 1), tolerance=0.25) == (1, 1, 1, 0, 0, 0)
    assert search("vtw", problem(quality, 6, 1), tolerance=0.1) == (1,) * 6


def test_fitprune_gives_up_as_much_attention_as_the_budget_asks() -> None:
    asked: list[float] = []

    def recipe(tolerance: float) -> list[float]:
        asked.append(tolerance)
        return [1.0, *[(1 - tolerance) ** power for power in (1, 1, 2, 4)]]

    given_ = Problem(Known(lambda keep: 0.0), mean_keep, 5, 1, recipe=recipe)
    keep = search("fitprune", given_, budget=0.6)
    assert mean_keep(keep) == pytest.approx(0.6, abs=2e-6) and len(asked) == 7
    least, most = (
        recipe(next(t for t in sorted(asked, reverse=up) if (mean_keep(recipe(t)) > 0.6) == up))
        for up in (0, 1)
    )
    assert (
        all(a - 1e-6 <= k <= b + 1e-6 for a, k, b in zip(least, keep, most, strict=True))
        and least != most
    )
    assert not given_.judge.asked  # type: ignore[attr-defined]
    before = len(asked)
    assert search("fitprune", given_, budget=0.6) == keep and len(asked) == before, (
        "statistics are in the record"
    )
    assert (
        search("fitprune", given_, budget=0.2) == (1, 0, 0, 0, 0)
        and search("fitprune", given_, budget=1.0) == (1,) * 5
    )
    with pytest.raises(ValueError, match="no model behind"):
        fitprune(problem(lambda keep: 0.0, 5), 0.5)
    with pytest.raises(ValueError, match="precision=0"):
        fitprune(given_, 0.5, precision=0)


def test_knobs_are_told_and_strangers_refused() -> None:
    assert set(strategies()) == {"gsearch", "psigmoid", "random", "vtw", "fitprune"}
    assert set(knobs("vtw")) == {"tolerance"} and settled("vtw", {"budget": None}) == {
        "tolerance": 0.003
    }
    for name in strategies():
        doc = strategies()[name].__doc__ or ""
        assert "Paper: " in doc and "Deviations: " in doc and "Raises:" in doc, name
    with pytest.raises(ValueError, match="vtw has no --budget"):
        settled("vtw", {"budget": 0.5})
    with pytest.raises(ValueError, match="psigmoid needs --budget"):
        settled("psigmoid", {})
    with pytest.raises(ValueError, match="unknown algorithm"):
        settled("nothing", {})
    with pytest.raises(ValueError, match="0 to 3"):
        problem(lambda keep: 0.0, 4, first=4)
    with pytest.raises(ValueError, match="tolerance=-1"):
        search("gsearch", problem(lambda keep: 0.0, 4), tolerance=-1)


class OfTwoKinds:
    """A judge of two kinds of prompts, nine of the first and one of the second, which alone needs tokens."""

    weights = torch.ones(10)

    def __init__(self, by_kind: bool) -> None:
        kinds = [0] * 9 + [int(by_kind)]
        self.groups = torch.tensor(kinds)
        self.floors: list[Sequence[float]] = []

    def hold(self, prefix: Sequence[float]) -> None:
        pass

    def parts(
        self, keep: Sequence[float], floors: Sequence[float] | None = None
    ) -> torch.Tensor | None:
        self.floors += [] if floors is None else [floors]
        lost = max(0.0, 0.5 - min(keep))
        return torch.tensor([2.0] * 9 + [1.0 - lost], dtype=torch.float64)


def test_a_tolerance_by_kind_spares_the_kind_that_the_mean_hides() -> None:
    found = {}
    for by_kind in (False, True):
        judge = OfTwoKinds(by_kind)
        asked = Problem(judge, mean_keep, 2, 0)
        found[by_kind] = min(search("gsearch", asked, tolerance=0.04, grid=GRID))
        if by_kind:  # quality is what the worst kind lost, and each kind has a floor of its own
            assert asked.full == 0 and asked.quality((0.25, 0.25)) == pytest.approx(-0.25)
            assert judge.floors[0] == pytest.approx([2 - 0.04, 1 - 0.04])
        else:
            assert asked.full == pytest.approx(1.9) and judge.floors[0] == pytest.approx([1.86])
    assert found == {False: pytest.approx(2 / GRID), True: pytest.approx(8 / GRID)}
