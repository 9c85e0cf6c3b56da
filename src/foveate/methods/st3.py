"""ST3-like: fewer per stage, fewer as answers grow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from jaxtyping import Int
from torch import Tensor

from ..core.contract import Schedule
from ..core.knobs import checked
from ..core.method import Method
from ..core.schedules import check_depth, check_keep, number_kept, spelled, tokens_kept
from ..core.scores import LastQuery
from ..core.view import View

Fall = Literal["cosine", "linear", "exponential"]


@dataclass(frozen=True)
class Annealed(Schedule):
    """Layer l keeps s(l) a(t) of the tokens that each sample started with.

    s falls in equal steps, one every `stride` layers, from 1 before `layer` to `keep` at the last
    layer; a falls from 1 at the prefill to `floor` at step `horizon`. Raises ValueError for a knob
    out of range.
    """

    layer: int
    stride: int
    keep: float
    floor: float
    horizon: int
    every: int
    fall: Fall

    def __post_init__(self) -> None:
        check_keep(float(self.keep))
        check_keep(float(self.floor))
        for knob in ("layer", "stride", "horizon", "every"):
            if getattr(self, knob) < 1:
                raise ValueError(f"{knob}={getattr(self, knob)}; expected 1 or more")
        if self.fall not in get_args(Fall):
            raise ValueError(f"fall={self.fall!r}; expected one of {', '.join(get_args(Fall))}")

    def acts(self, layer: int, step: int) -> bool:
        """Before every `stride`-th layer, at every `every`-th step up to the horizon."""
        due = step % self.every == 0 and step < self.horizon + self.every
        return due and layer in range(self.layer, layer + 1, self.stride)

    def check(self, layers: int, family: str = "") -> None:
        """Raises ValueError if the decoder is too shallow."""
        check_depth(self.layer, layers)

    def __call__(self, view: View) -> Int[Tensor, B]:
        """Counts to keep."""
        return tokens_kept(view.total, self.share(view.layer, view.layers) * self.anneal(view.step))

    def plan(self, total: int, layers: int) -> list[int]:
        """What each stage keeps in the prefill."""
        return [
            number_kept(total, self.share(layer, layers) * self.anneal(0))
            if self.acts(layer, 0)
            else total
            for layer in range(layers)
        ]

    def share(self, layer: int, layers: int) -> float:
        """s(l): stages are counted from 1."""
        stage, stages = ((at - self.layer) // self.stride + 1 for at in (layer, layers - 1))
        return 1.0 - (1.0 - self.keep) * stage / stages

    def anneal(self, step: int) -> float:
        """a(t)."""
        past = min(step / self.horizon, 1.0)
        if self.fall == "exponential":
            return float(max(self.floor, 1e-3) ** past)
        left = 1.0 - past if self.fall == "linear" else (1.0 + math.cos(math.pi * past)) / 2
        return self.floor + (1.0 - self.floor) * left


@checked
def st3(
    layer: int = 2,
    stride: int = 2,
    keep: float = 0.25,
    floor: float = 0.25,
    horizon: int = 64,
    every: int = 8,
    fall: Fall = "cosine",
) -> Method:
    """Fewer visual tokens every few layers, and in all of them fewer as the answer grows; nothing
    is trained.

    Paper: "ST3: Accelerating Multimodal Large Language Model by Spatial-Temporal Visual Token
    Trimming", Zhuang et al., arXiv 2412.20105: progressive pruning over layers, annealing over
    generated tokens.

    Where: while the answer grows; stages.

    Deviations: built from the paper's abstract alone, so this is a method of its kind. Layers that
    skip attention are not modelled. Tokens are ranked by the newest token's attention in the layer
    before, at every `every`-th step.

    Args:
        layer: the first layer that runs with fewer tokens; 1 or more.
        stride: layers from one cut to the next.
        keep: share of the tokens kept in the prefill's last stage.
        floor: factor on every layer's share once the answer has `horizon` tokens.
        horizon: generated tokens over which the factor falls.
        every: steps between evictions.
        fall: along which curve.

    Raises:
        ValueError: a knob out of range.
    """
    schedule = Annealed(layer, stride, keep, floor, horizon, every, fall)
    name = f"st3:layer={layer},stride={stride},keep={spelled(keep)},floor={spelled(floor)},horizon={horizon}"
    return Method(LastQuery(), schedule, name=f"{name},every={every},fall={fall}")
