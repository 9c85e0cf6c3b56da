"""SparseVLM: rated by relevant words; some recycled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from ...core.contract import Schedule
from ...core.knobs import checked
from ...core.method import Method
from ...core.schedules import spelled
from ...core.stairs import Stairs
from ...core.view import View
from .raters import RATERS, TextRaters
from .recycling import Recycled, Recycling

LAYERS = (3 / 32, 7 / 32, 16 / 32)  # the authors' code: after layers 2, 6 and 15 of 32,
KEEP = (
    0.521,
    0.347,
    0.191,
)  # 300, 200 and 110 of 576; 203 on average (192 by the authors' count of layers)


@dataclass(frozen=True)
class RankAdaptive(Schedule):
    """At each place lambda (L_v - rank) of the L_v tokens alive leave, by the rank of what raters
    paid them.

    Attributes:
        stairs: where; what it keeps is of no account.
        scale: lambda.
        raters: whose attention is counted.
    """

    stairs: Stairs
    scale: float
    raters: TextRaters = RATERS

    def __call__(self, view: View) -> Int[Tensor, B]:
        """Counts to keep; singular values below a ten-thousandth of the largest count as 0."""
        if view.layer not in self.stairs.places(view.layers):
            return view.alive
        rank = torch.linalg.matrix_rank(self.raters.paid(view), rtol=1e-4)
        return (
            view.alive
            - (self.scale * (view.alive - rank).clamp(min=0).double() + 1e-9).floor().long()
        )


@checked
def sparsevlm(
    keep: tuple[float | int, ...] = KEEP,
    layers: tuple[float | int, ...] = LAYERS,
    scale: float | None = None,
    recycle: float = 0.3,
    cluster: Literal["mean", "sum"] = "mean",
) -> Method:
    """At several layers, the words that concern the picture rate its tokens; the best of the
    dropped are recycled.

    Paper: "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference",
    Zhang et al., arXiv 2410.04417: raters r >= mean(r), counts N = lambda (L_v - rank(P)),
    recycling by density peaks. Checked against the authors' code, which has no ranks; that rule is
    from notes on the paper.

    Where: inside the language model; 3 layers.

    Deviations: counts are a table by default, as in the authors' code, with the code's numbers as
    shares of the image and of the depth; ``scale`` is the paper's lambda and rule (it gives neither
    lambda nor a tolerance for the rank; ours is 1e-4). Counts include the merged tokens (the code's
    300 come with 9 more). A merged token takes its centre's place and position (the code appends
    and renumbers). It is the mean of its cluster, as in the code; ``cluster="sum"`` is the paper's.
    No noise breaks ties of density. Raters may reach the mean, as the paper writes; the code wants
    more.

    Args:
        keep: visual tokens kept from each place on, fractions like 0.5/0.3 or numbers of tokens
            like 300/200.
        layers: as many places: layers, like 3/7/16, or shares of the depth.
        scale: lambda, in place of `keep`: the share that leaves of the tokens in excess of the
            rank.
        recycle: share of the dropped tokens that is recycled, in a tenth as many clusters; 0 for
            none.
        cluster: what a cluster becomes, its "mean" or its "sum".

    Raises:
        ValueError: as many keeps as layers were not given, or a share is out of range.
    """
    if not 0 <= recycle <= 1 or (scale is not None and not 0 <= scale <= 1):
        raise ValueError(f"scale={scale}, recycle={recycle}; expected shares in [0, 1]")
    counts = f"keep={'/'.join(map(spelled, keep))}" if scale is None else f"scale={spelled(scale)}"
    stairs = Stairs(layers, keep if scale is None else (1.0,) * len(layers))
    schedule: Schedule = stairs if scale is None else RankAdaptive(stairs, scale)
    name = f"sparsevlm:{counts},recycle={spelled(recycle)},cluster={cluster}"
    if not recycle:
        return Method(RATERS, schedule, name=name)
    score = Recycled(recycle)
    return Method(score, schedule, merge=Recycling(score, cluster == "sum"), name=name)
