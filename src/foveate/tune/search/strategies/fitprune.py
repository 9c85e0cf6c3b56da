"""FitPrune's recipe: every layer may lose the same share of its attention (arXiv 2409.10197)."""

from __future__ import annotations

from collections.abc import Sequence

from ..problem import Problem
from .psigmoid import flattened, solved


def fitprune(problem: Problem, budget: float, precision: float = 0.01) -> Sequence[float]:
    """Drops at each layer what its attention misses least, as much as the budget asks for.

    No trial is judged.

    Paper: "Fit and Prune: Fast and Training-free Visual Token Pruning for Multi-modal Large
    Language Models", Ye et al., arXiv 2409.10197; the recipe is `foveate.tune.fitprune.Recipe`, its
    alpha follows from the budget by bisection.

    Deviations: between the two alphas that enclose the budget shares are mixed linearly, so that it
    is met exactly. Tokens are ranked by the search's ranking; for the paper's own,
    ``score=fitprune,schedule=schedule:found.json``. The paper drops from the second layer on: start
    at layer 1.

    Args:
        problem: what is searched.
        budget: as of `psigmoid`.
        precision: of alpha, the authors'.

    Raises:
        ValueError: a budget out of reach, or a precision that is not above 0.
    """
    if not precision > 0:
        raise ValueError(f"precision={precision}; expected a number above 0, like 0.01")
    low = 0.0
    high = 1.0
    # The schedules of `low`, too dear, and of `high`, within the budget.
    dear: Sequence[float] = problem.unpruned
    cheap: Sequence[float] = flattened(problem, 0.0)
    while high - low > precision:
        middle = (low + high) / 2
        found = problem.recipe(middle)
        if problem.cost(found) > budget:
            low = middle
            dear = found
        else:
            high = middle
            cheap = found

    def mixed(x: float) -> list[float]:
        return [c + x * (d - c) for c, d in zip(cheap, dear, strict=True)]

    return solved(problem, budget, mixed)
