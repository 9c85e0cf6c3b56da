"""P-Sigmoid: shares that fall like a sigmoid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from jaxtyping import Int
from torch import Tensor

from ..core.contract import Schedule
from ..core.knobs import checked
from ..core.method import Method
from ..core.schedules import check_keep, number_kept, spelled, tokens_kept
from ..core.scores import RANKINGS, Ranking
from ..core.view import View


@cache
def falling(layers: int, mean: float, slope: float, floor: float, first: int) -> tuple[float, ...]:
    """floor + (1 - floor) / (1 + exp(slope (l - alpha))) for each layer, 1 before `first`; alpha
    for the mean asked.

    Raises:
        ValueError: no alpha gives that mean.
    """

    def curve(alpha: float) -> list[float]:
        sigmoid = [(1 - math.tanh(slope * (layer - alpha) / 2)) / 2 for layer in range(layers)]
        return [
            1.0 if layer < first else floor + (1 - floor) * s for layer, s in enumerate(sigmoid)
        ]

    least = (first + (layers - first) * floor) / layers
    if not least <= mean <= 1:
        raise ValueError(
            f"keep={mean}; with all tokens before layer {first} and floor={floor}, expected a mean in [{least:.3f}, 1]"
        )
    low = -40 / slope - layers
    high = layers + 40 / slope
    for _ in range(80):
        alpha = (low + high) / 2
        low, high = (alpha, high) if sum(curve(alpha)) < mean * layers else (low, alpha)
    return tuple(curve(high))


@dataclass(frozen=True)
class Sigmoid(Schedule):
    """The curve as a schedule, for a decoder of any depth; see `falling`."""

    mean: float
    slope: float
    floor: float
    first: int

    def acts(self, layer: int, step: int) -> bool:
        """In a prefill, from the first layer on that may drop."""
        return step == 0 and layer >= self.first

    def check(self, layers: int, family: str = "") -> None:
        """Raises ValueError if no curve of this mean fits a decoder of `layers` layers."""
        self.shares(layers)

    def __call__(self, view: View) -> Int[Tensor, B]:
        """Counts to keep."""
        return tokens_kept(view.total, self.shares(view.layers)[view.layer])

    def plan(self, total: int, layers: int) -> list[int]:
        """Each layer's share."""
        return [number_kept(total, share) for share in self.shares(layers)]

    def shares(self, layers: int) -> tuple[float, ...]:
        """The curve in a decoder of `layers` layers; see `falling`."""
        return falling(layers, self.mean, self.slope, self.floor, self.first)


@checked
def psigmoid(
    keep: float = 0.5,
    slope: float = 0.5,
    floor: float = 0.0,
    first: int = 2,
    ranking: Ranking = "last",
) -> Method:
    """Before every layer, keep a share of the visual tokens that falls over the depth like a
    sigmoid.

    Paper: "Accelerating Multimodel Large Language Models by Searching Optimal Vision Token
    Reduction", Zhao et al., arXiv 2412.00556, P-Sigmoid: keep(l) = 1 / (1 + exp(k (l - alpha))), k
    > 0; alpha follows from the budget.

    Where: inside the language model; each layer.

    Deviations: only the paper's abstract is public to us, so the method is a reconstruction. The
    slope is given here; the paper finds it by Bayesian optimisation. The budget is the mean share
    over layers. The floor is ours.

    Args:
        keep: share of the visual tokens that a layer runs with, mean over layers.
        slope: the paper's k: the larger, the more like one cut.
        floor: share that the deepest layers tend to.
        first: the first layer that may run with fewer tokens; 1 or more, or 0 with a ranking that
            looks at no layer before (`tower`, `diverse`, `random`, `even`).
        ranking: by what tokens are ranked; one of `core.scores.RANKINGS`.

    Raises:
        ValueError: a knob out of range. When applied: a mean that no curve has at the model's
            depth.
    """
    check_keep(float(keep))
    check_keep(float(floor))
    score = RANKINGS[ranking]
    if first < score.needs.earliest or not 0 < slope < math.inf:
        raise ValueError(
            f"first={first}, slope={slope}; expected a layer of {score.needs.earliest} or more, a slope above 0"
        )
    name = f"psigmoid:keep={spelled(float(keep))},slope={spelled(float(slope))},floor={spelled(float(floor))}"
    name += f",first={first}" + ("" if ranking == "last" else f",ranking={ranking}")
    return Method(score, Sigmoid(float(keep), float(slope), float(floor), first), name=name)
