"""VScan, second stage: last prompt token's attention, mid-depth."""

from __future__ import annotations

from typing import Literal

from ..core.knobs import checked
from ..core.method import Method
from ..core.schedules import spelled
from ..core.scores import LastQuery
from ..core.stairs import Stairs


@checked
def vscan2(
    keep: float | int = 0.5, layer: int | None = None, rank: Literal["before", "own"] = "before"
) -> Method:
    """Before a middle layer, keep the visual tokens that the last prompt token attends to most.

    Paper: "VScan: Rethinking Visual Token Reduction for Efficient Large Vision-Language Models",
    Zhang et al., arXiv 2505.22654, second stage (pruning by the last instruction token's attention
    at a middle layer, 16 of LLaVA-1.5-7B's 32), since early layers favour late positions and middle
    ones look at the image. Its first stage, in the vision tower, is a method of its own; give both
    as ``vscan1:...+vscan2:...``.

    Where: inside the language model; mid-depth.

    Deviations: the attention is that of the layer before the cut, mean over heads, as for FastV;
    the authors' code ranks by the projections of the layer about to run (``rank="own"``, which
    projects that layer's keys once more). The paper's retention rates are per benchmark; half is
    our default.

    Args:
        keep: visual tokens kept, a fraction (float) of those that a first stage has left, or a
            number (int).
        layer: the first layer that runs with fewer tokens; by default the middle of the decoder.
        rank: by the attention of the layer "before" it or of the layer about to run ("own").

    Raises:
        ValueError: layer < 1, or `keep` out of range.
    """
    if layer is not None and layer < 1:
        raise ValueError(
            f"layer={layer}; expected 1 or more: the score is the attention of the layer before"
        )
    name = f"vscan2:keep={spelled(keep)}" + ("" if layer is None else f",layer={layer}")
    name += "" if rank == "before" else f",rank={rank}"
    schedule = Stairs((0.5 if layer is None else layer,), (keep,), of_left=True)
    return Method(LastQuery(back=0 if rank == "own" else 1), schedule, name=name)
