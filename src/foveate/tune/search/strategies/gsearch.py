"""G-Search: shallow to deep, the least that each layer can do with (arXiv 2412.00556).

A trial at layer l keeps rho there and in all deeper layers, the most permissive completion, since a
dropped token cannot come back. If the essential counts never grow with depth and rankings are
nested, passing is monotone in rho, bisection finds the least, and the result is minimal in every
layer. Where that fails the search still ends, and what it returns has passed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from ..bayes import maximise
from ..problem import Problem


def gsearch(
    problem: Problem,
    tolerance: float = 0.01,
    variant: Literal["bisect", "bayes"] = "bisect",
    stride: int = 1,
    grid: int = 32,
    trials: int = 8,
    weight: float = 0.1,
) -> Sequence[float]:
    """Layer by layer, keeps as little as quality within `tolerance` of the unpruned model's allows.

    Paper: arXiv 2412.00556, G-Search.

    Deviations: reconstructed from the abstract. The first layer searched is bisected; deeper ones
    look just below the layer before, then twice as far each time, since most layers need what it
    needs.

    Args:
        problem: what is searched.
        tolerance: quality given up, against the unpruned model, over all layers together.
        variant: "bisect" a grid, or "bayes": the best of quality - weight x cost among what passes,
            per layer.
        stride: layers that share a count; only every `stride`-th is searched.
        grid: counts are multiples of 1 / grid.
        trials, weight: of bayes: trials of each layer, and weight of the cost ratio, in units of
            quality.

    Raises:
        ValueError: a negative tolerance, or stride, grid or trials below 1.
    """
    if not tolerance >= 0 or min(stride, grid, trials) < 1:
        raise ValueError(
            f"{tolerance=}, {stride=}, {grid=}, {trials=}; "
            "expected at least 0, and 1 for the others"
        )
    problem.hold(problem.unpruned[: problem.first])
    floor = problem.full - tolerance
    keep = list(problem.unpruned)
    most = grid
    for layer in range(problem.first, problem.layers, stride):
        problem.hold(keep[:layer])
        one = _Layer(problem, tuple(keep[:layer]), grid, floor)
        if variant == "bayes":
            most = _bayes(one, most, trials, weight)
        elif layer == problem.first:
            most = bisected(-1, most, one.passes)
        else:
            most = galloped(most, one.passes)
        keep = one.completed(most)
    return keep


class _Layer:
    """The question at one layer: does keeping steps / grid there and in all deeper layers pass?"""

    def __init__(
        self, problem: Problem, before: tuple[float, ...], grid: int, floor: float
    ) -> None:
        self.problem = problem
        self.before = before
        self.grid = grid
        self.floor = floor

    def completed(self, steps: int) -> list[float]:
        """The whole schedule of a trial."""
        share = round(steps / self.grid, 6)
        return [*self.before, *[share] * (self.problem.layers - len(self.before))]

    def passes(self, steps: int) -> bool:
        """Whether the trial is good enough."""
        return self.problem.passes(self.completed(steps), self.floor)


def bisected(fails: int, most: int, passes: Callable[[int], bool]) -> int:
    """The least that passes between `fails`, which does not, and `most`, which does.

    Neither of them is tried.
    """
    while most - fails > 1:
        middle = (fails + most) // 2
        if passes(middle):
            most = middle
        else:
            fails = middle
    return most


def galloped(most: int, passes: Callable[[int], bool]) -> int:
    """As `bisected` from -1, but in few trials where the answer is near `most`."""
    step = 1
    below = most - 1
    while below >= 0 and passes(below):
        most = below
        step = 2 * step
        below = most - step
    return bisected(max(below, -1), most, passes)


def _bayes(one: _Layer, most: int, trials: int, weight: float) -> int:
    """The steps that maximise quality - weight x cost.

    What does not pass is punished, and never taken.
    """
    passed: dict[int, float] = {}  # steps that passed: their value

    def value(point: dict[str, float]) -> float:
        steps = min(most, int(point["share"] * (most + 1)))
        keep = one.completed(steps)
        quality = one.problem.quality(keep)
        cost = one.problem.cost(keep)
        worth = quality - weight * cost
        if quality >= one.floor:
            passed[steps] = worth
        return worth - 10 * max(0.0, one.floor - quality)

    if most > 0:
        seed = one.problem.seed + len(one.before)  # another one at every layer
        maximise(value, {"share": (0.0, 1.0)}, trials, seed, begin=[{"share": 1.0}])
    # Of equal values the fewest steps; what the layer before keeps, if nothing has passed.
    return max(passed, key=lambda steps: (passed[steps], -steps), default=most)
