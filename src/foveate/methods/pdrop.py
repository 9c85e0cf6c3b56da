"""PyramidDrop: drops a share after each decoder stage."""

from __future__ import annotations

from typing import Literal

from ..core.knobs import checked
from ..core.method import Method
from ..core.schedules import spelled
from ..core.scores import LastQuery
from ..core.stairs import Stairs


@checked
def pdrop(
    keep: float = 0.5,
    layers: tuple[float | int, ...] = (0.25, 0.5, 0.75),
    rank: Literal["own", "before"] = "own",
    within: Literal["sample", "image"] = "sample",
) -> Method:
    """After each stage of the decoder, keep a share of the tokens left, by what the last prompt
    token attends to.

    Paper: "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual
    Redundancy Reduction", Xing et al., arXiv 2410.17247: stage s runs with lambda^s of the tokens,
    ranked by the query of the last instruction token against the visual keys.

    Where: inside the language model; stages.

    Deviations: the authors' code ranks by the projections of the layer about to run
    (``rank="own"``, the default, which projects that layer's keys once more); ``rank="before"`` is
    the attention that the stage's last layer has paid. The code renumbers positions; original ones
    are kept here. Counts are rounded half up (the code: down). The query is the prompt's last
    token, whatever the template puts there, as in the code.

    Args:
        keep: the paper's lambda, the share that stays from one stage to the next.
        layers: the first layer of each later stage: numbers of layers, like 8/16/24, or shares of
            the depth.
        rank: by the attention of the layer about to run ("own") or of the layer "before" it.
        within: "image" gives every image of a sample its share.

    Raises:
        ValueError: `keep` outside [0, 1], or layers that do not ascend.
    """
    if isinstance(keep, int) or not 0 <= keep <= 1:
        raise ValueError(
            f"keep={keep}; expected lambda, the share that stays from stage to stage, like 0.5"
        )
    schedule = Stairs(layers, tuple(round(keep**stage, 12) for stage in range(1, len(layers) + 1)))
    name = f"pdrop:keep={spelled(keep)},layers={'/'.join(map(str, layers))},rank={rank}"
    name += "" if within == "sample" else f",within={within}"
    return Method(LastQuery(back=0 if rank == "own" else 1), schedule, within=within, name=name)
