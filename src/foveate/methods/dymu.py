"""DyMU: merges alike tokens, by a threshold."""

from __future__ import annotations

from ..core.knobs import checked
from ..core.matching import IntoOwners, Left, LeftFirst, Matching
from ..core.method import Method
from ..core.pictures import ByImage, EachImage, MixImage, Share


@checked
def dymu(layer: int = 0, threshold: float = 0.9) -> Method:
    """Before layer `layer`, merge all visual tokens of an image that are more alike than a
    threshold.

    Paper: "DyMU: Dynamic Merging and Virtual Unmerging for Efficient VLMs", Wang et al., arXiv
    2504.17040: bipartite matching as in ToMe, but by a threshold, so that an image's count follows
    its complexity. Checked with the authors' code.

    Where: before the language model; layer 0.

    Deviations: done after the tower, not between its layers, by the keys of the layer whose output
    the model reads. The paper sets a threshold per layer from a batch of images so that a wished
    count is kept on average; here it is a knob (`foveate.Trace.mean_kept` tells what it keeps).
    Virtual unmerging lets attention treat a merged token as its members, at their own positions.
    ``weigh=clusters`` is its half without the positions: a bias of log(size).

    Args:
        layer: the first layer that runs with fewer tokens; 0 is before the language model.
        threshold: cosine of keys above which a pair merges.

    Raises:
        ValueError: a negative layer, or a threshold that is no cosine.
    """
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold={threshold}; expected a cosine, in [-1, 1]")
    matching = Matching(Share(1), threshold=threshold)
    left = Left(matching)
    name = f"dymu:layer={layer},threshold={threshold:g}"
    return Method(
        ByImage(LeftFirst(matching), left),
        EachImage(left, layer),
        MixImage(IntoOwners(matching)),
        name=name,
    )
