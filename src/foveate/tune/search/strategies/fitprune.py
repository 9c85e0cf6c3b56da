"""FitPrune's recipe: every layer may lose the same share of its attention (arXiv 2409.10197)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..problem import Problem
from .psigmoid import solved


def fitprune(problem: Problem, budget: float) -> Sequence[float]:
    """Drops from each layer what its attention misses least, as much as the budget asks for; no trial is run.

    Paper: "Fit and Prune: Fast and Training-free Visual Token Pruning for Multi-modal Large Language Models", Ye et
    al., arXiv 2409.10197: from statistics on few samples, each layer drops as many tokens as keep the loss of self- and
    of cross-attention below alpha, and alpha follows from the budget by bisection.

    Deviations: losses are of the attention to visual tokens, averaged over samples at equal shares of tokens; a layer
    never keeps more than the one before; tokens are ranked by the search's ranking and not by the paper's.

    Args:
        problem: what is searched.
        budget: as of `psigmoid`.

    Raises:
        ValueError: a budget out of reach.
    """
    lost = np.asarray(problem.statistics())

    def recipe(alpha: float) -> list[float]:
        dropped = [min(_inverse(curve, 1 - alpha) for curve in lost[layer]) for layer in range(problem.layers)]
        keep = [1.0 if layer < problem.first else 1 - dropped[layer] for layer in range(problem.layers)]
        return [float(share) for share in np.minimum.accumulate(keep)]

    return solved(problem, budget, recipe)


def _inverse(curve: np.ndarray, loss: float) -> float:
    """The largest share of tokens whose dropping loses at most `loss`."""
    if loss >= 1:
        return 1.0
    place = int(np.searchsorted(curve, loss, side="right")) - 1
    if place >= len(curve) - 1:
        return 1.0
    part = (loss - curve[place]) / max(curve[place + 1] - curve[place], 1e-30)
    return float((place + min(1.0, part)) / (len(curve) - 1))
