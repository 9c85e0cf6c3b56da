"""FastV: what the last prompt token attends to."""

from __future__ import annotations

from typing import Literal

from ..core.knobs import checked
from ..core.method import Method
from ..core.schedules import Cut, spelled
from ..core.scores import RANKINGS, Ranking


@checked
def fastv(
    layer: int = 2,
    keep: float | int | None = None,
    rate: float | None = None,
    within: Literal["sample", "image"] = "sample",
    ranking: Ranking = "last",
) -> Method:
    """Before layer `layer`, keep the visual tokens that the last prompt token attends to most.

    Paper: "An Image is Worth 1/2 Tokens After Layer 2", Chen et al., arXiv 2403.06764 (K, R).

    Where: inside the language model; layer 2.

    Deviations: the score is the last prompt token's attention in layer K-1, mean over heads, as in
    the authors' code; ``ranking="received"`` is what the text says. Original positions are kept.
    With a KV cache the drop holds for the whole answer; without one, every step prunes anew by its
    newest token, as the authors' code does.

    Args:
        layer: the paper's K, the first layer that runs with fewer tokens; 1 or more, or 0 with a
            ranking that looks at no layer before (`tower`, `diverse`, `random`, `even`).
        keep: visual tokens kept, a fraction (float) or a number (int); half if neither it nor
            `rate` is given.
        rate: the paper's R, the fraction removed; instead of `keep`.
        within: "image" gives every image of a sample its share.
        ranking: by what tokens are ranked, if not by the paper's score; one of
            `core.scores.RANKINGS`.

    Raises:
        ValueError: a layer before which it cannot rank, `keep` or `rate` out of range, or both
            given.
    """
    score = RANKINGS[ranking]
    if layer < (first := score.needs.earliest):
        raise ValueError(
            f"layer={layer}; expected {first} or more: the score is the attention of the layer before"
        )
    if rate is not None and keep is not None:
        raise ValueError(
            f"got keep={keep} and rate={rate}; give one of them: rate is what keep leaves"
        )
    if rate is not None:
        if not 0 <= rate <= 1:
            raise ValueError(f"rate={rate}; expected the fraction removed, in [0, 1]")
        keep = round(1.0 - rate, 12)  # 1 - 0.9 is 0.1, whatever rounding says
    keep = 0.5 if keep is None else keep
    name = f"fastv:layer={layer},keep={spelled(keep)}" + (
        "" if ranking == "last" else f",ranking={ranking}"
    )
    name += "" if within == "sample" else f",within={within}"
    return Method(score, Cut(layer, keep), within=within, name=name)
