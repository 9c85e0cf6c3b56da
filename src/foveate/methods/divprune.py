"""DivPrune: tokens farthest from one another."""

from __future__ import annotations

from ..core.diversity import MaxMin
from ..core.knobs import checked
from ..core.method import Method
from ..core.pictures import ByImage, EachImage, Share
from ..core.schedules import spelled


@checked
def divprune(layer: int = 0, keep: float | int = 0.25) -> Method:
    """Before layer `layer`, keep the visual tokens of each image that are most diverse.

    Paper: "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", Alvar et
    al., arXiv 2503.02175, (max-min diversity, solved greedily; distance is one minus the cosine of
    the tokens). Checked against the authors' code.

    Where: before the language model; layer 0.

    Deviations: each image of a sample is a problem of its own. Original positions are kept.

    Args:
        layer: the first layer that runs with fewer tokens; 0 is before the language model, as in
            the paper.
        keep: visual tokens kept of each image, a fraction (float) or a number (int).

    Raises:
        ValueError: a negative layer, or `keep` out of range.
    """
    count = Share(keep)
    return Method(
        ByImage(MaxMin(), count),
        EachImage(count, layer),
        name=f"divprune:layer={layer},keep={spelled(keep)}",
    )
