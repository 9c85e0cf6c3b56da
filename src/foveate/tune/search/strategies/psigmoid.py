"""P-Sigmoid: given a budget, a sigmoid over depth, its slope and floor by Bayesian optimisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ....artefacts.schedules import load_schedule
from ..bayes import maximise
from ..problem import Problem


def psigmoid(
    problem: Problem, budget: float, trials: int = 24, warm: str | None = None
) -> Sequence[float]:
    """The best falling sigmoid over depth that costs `budget`.

    Paper: arXiv 2412.00556, P-Sigmoid;
    keep(l) = floor + (1 - floor) / (1 + exp(slope (l - alpha))).

    Deviations: reconstructed; reviews print a curve that would rise with depth. alpha follows from
    the budget by bisection, so slope and floor alone are searched, by a Gaussian process and
    expected improvement. Layers before the first that may drop keep all, and the rest is solved for
    what is left of the budget.

    Args:
        problem: what is searched.
        budget: cost over the unpruned model's, in the search's unit: mean keep rate, FLOPs, KV
            bytes or seconds.
        trials: schedules tried.
        warm: a schedule file, G-Search's say; its fit is tried first.

    Raises:
        ValueError: a budget out of reach, fewer than 1 trial, no such file or one of another depth;
            or optuna missing.
    """
    if trials < 1:
        raise ValueError(f"trials={trials}; expected 1 or more")
    # No floor can be above the share that alone, in all layers, costs the budget.
    flat = solved(problem, budget, lambda x: flattened(problem, x))[-1]
    begin = [{"slope": 1.0, "flatness": 0.0}, {"slope": 1.0, "flatness": 0.9}]
    if warm is not None:
        begin.insert(0, _fit(problem, warm))
    problem.hold(problem.unpruned[: problem.first])

    def schedule(point: dict[str, float]) -> list[float]:
        return sigmoid(problem, budget, point["slope"], point["flatness"] * flat)

    best = maximise(
        lambda point: problem.quality(schedule(point)),
        ranges={"slope": _slopes(problem), "flatness": (0.0, 0.98)},
        trials=trials,
        seed=problem.seed,
        begin=begin[:trials],
        logarithmic=("slope",),
    )
    return schedule(best)


def sigmoid(problem: Problem, budget: float, slope: float, floor: float) -> list[float]:
    """The sigmoid of this slope and floor that costs `budget`."""
    depth = problem.layers
    reach = depth + 40 / slope  # alpha so far outside of the decoder makes the curve flat

    def curve(x: float) -> list[float]:
        alpha = -reach + x * (depth + 2 * reach)
        keep = [1.0] * problem.first
        for layer in range(problem.first, depth):
            keep.append(floor + (1 - floor) * _logistic(slope * (alpha - layer)))
        return keep

    return solved(problem, budget, curve)


def flattened(problem: Problem, share: float) -> list[float]:
    """The same share in all layers that may drop."""
    return [1.0 if layer < problem.first else share for layer in range(problem.layers)]


def solved(problem: Problem, budget: float, curve: Callable[[float], list[float]]) -> list[float]:
    """`curve(x)`, x in [0, 1], whose cost is the budget.

    The cost of `curve` must never fall with x. What is found costs the budget or a little less.

    Raises:
        ValueError: the budget is out of reach.
    """
    least = problem.cost(flattened(problem, 0.0))
    if not least <= budget <= 1:
        raise ValueError(
            f"budget={budget:g} is out of reach: dropping everything before layer {problem.first} "
            f"still costs {least:.3f}; give a budget from there to 1, or a lower --start-layer"
        )
    low = 0.0
    high = 1.0
    for _ in range(44):
        middle = (low + high) / 2
        if problem.cost(curve(middle)) <= budget:
            low = middle
        else:
            high = middle
    return [round(share, 6) for share in curve(low)]


def _logistic(x: float) -> float:
    """1 / (1 + exp(-x)); 0 where exp would overflow."""
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def _slopes(problem: Problem) -> tuple[float, float]:
    """The least and the largest slope: from a fall over the whole depth to one within a layer."""
    return 1 / problem.layers, 8.0


def _fit(problem: Problem, warm: str) -> dict[str, float]:
    """Slope and flatness of the sigmoid nearest to a schedule, at the schedule's own cost."""
    wanted = load_schedule(warm).keep
    if len(wanted) != problem.layers:
        raise ValueError(
            f"{warm} is for a decoder of {len(wanted)} layers, but this model has {problem.layers}"
        )
    own = max(problem.cost(wanted), problem.cost(flattened(problem, 0.0)))
    flat = solved(problem, own, lambda x: flattened(problem, x))[-1]
    low, high = _slopes(problem)
    best = math.inf
    nearest = {"slope": 1.0, "flatness": 0.0}
    # A grid of points: slopes by equal factors, flatness by equal steps.
    for rise in range(13):
        for part in range(8):
            point = {"slope": low * (high / low) ** (rise / 12), "flatness": part / 8}
            curve = sigmoid(problem, own, point["slope"], point["flatness"] * flat)
            pairs = zip(curve, wanted, strict=True)
            far = sum((found - share) ** 2 for found, share in pairs)
            if far < best:
                best = far
                nearest = point
    return nearest
