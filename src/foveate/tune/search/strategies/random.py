"""Random search: the control that every strategy must beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..problem import Problem
from .psigmoid import solved


def random(problem: Problem, budget: float, trials: int = 24) -> Sequence[float]:
    """The best of `trials` random schedules that never grow with depth and cost `budget`.

    Paper: none; the control.

    Deviations: shares are sorted uniform draws, raised to the power at which they cost the budget.

    Args:
        problem: what is searched.
        budget: as of `psigmoid`.
        trials: schedules tried.

    Raises:
        ValueError: a budget out of reach, or fewer than 1 trial.
    """
    if trials < 1:
        raise ValueError(f"trials={trials}; expected 1 or more")
    drawn = np.random.default_rng(problem.seed)
    problem.hold(problem.unpruned[: problem.first])
    tried: list[tuple[float, list[float]]] = []
    for _ in range(trials):
        shares = np.sort(drawn.uniform(0, 1, problem.layers - problem.first))[::-1]  # falling

        def curve(x: float, shares: np.ndarray = shares) -> list[float]:
            power = (1 - x) / max(x, 1e-12)  # from very large at 0, dropping all, to 0 at 1
            return [1.0] * problem.first + [float(share**power) for share in shares]

        keep = solved(problem, budget, curve)
        tried.append((problem.quality(keep), keep))
    return max(tried, key=lambda one: one[0])[1]
