"""Searched schedule: the share that a search found per layer."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..artefacts.schedules import ScheduleFile, load_schedule
from ..core.knobs import checked
from ..core.method import MergeKind, Method, WeighKind
from .spec import score_of


@checked
def schedule(
    path: str | ScheduleFile,
    ranking: str | None = None,
    within: Literal["sample", "image"] | None = None,
    weigh: WeighKind | None = None,
    merge: MergeKind | None = None,
    strength: float | None = None,
    place: float | None = None,
    cutoff: float | None = None,
) -> Method:
    """Before every layer, keep the share of the visual tokens that a search found for it.

    Paper: "Accelerating Multimodel Large Language Models by Searching Optimal Vision Token
    Reduction", Zhao et al., arXiv 2412.00556; `foveate search` is its G-Search and P-Sigmoid, and
    other searches beside them.

    Where: inside the language model; each layer.

    Deviations: only the paper's abstract is public to us, so the method is a reconstruction. Tokens
    are ranked anew before every layer that drops some, by the attention of the layer before.
    Original positions are kept.

    Args:
        path: the JSON file that `foveate search` wrote, the name of a bundled one, such as
            scenes-gsearch, or what `foveate.load_schedule` read.
        ranking: by what tokens are ranked, if not as in the search; a ranking of
            `core.scores.RANKINGS`, or a method, whose score it is then. What that method makes of
            dropped tokens is left out.
        within: "image" gives every image of a sample its share, "sample" ranks all together; by
            default as searched.
        weigh: what a kept token weighs, as `Method.weighted` has it, if not as in the search.
            "none" weighs all alike.
        merge: "mean" or "none", if not as in the search.
        strength: of weights, if not as in the search.
        place: of weigh "mixed", if not as in the search.
        cutoff: of merge "mean", if not as in the search.

    Raises:
        ValueError: no such file, no schedule in it, or no such score. At `apply`: the model has
            another depth or is of another family.
    """
    found = path if isinstance(path, ScheduleFile) else load_schedule(path)
    name = f"schedule:{'given' if isinstance(path, ScheduleFile) else Path(path).name}"
    name += ("" if ranking is None else f",ranking={ranking}") + (
        "" if within is None else f",within={within}"
    )
    kind: Literal["sample", "image"] = within or ("image" if found.within == "image" else "sample")
    plain = Method(score_of(ranking or found.ranking), found.schedule, within=kind, name=name)
    return found.weighting.said(
        plain, weigh=weigh, merge=merge, strength=strength, place=place, cutoff=cutoff
    )
