"""PruMerge+: outliers and a grid; merges the rest."""

from __future__ import annotations

from ..core.knobs import checked
from ..core.method import Method
from .prumerge import outliers_kept
from .prumerge.outliers import Merging


@checked
def prumerge_plus(layer: int = 0, merging: Merging = "nearest") -> Method:
    """Before layer `layer`, keep outliers of the tower's attention and evenly spaced tokens, and
    merge the rest.

    Paper: "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", Shang
    et al., arXiv 2403.15388 (PruMerge+). Checked against the authors' code.

    Where: before the language model; layer 0.

    Deviations: the paper does not say how many tokens are spaced; as in the authors' code their
    distance is a third of the mean distance of the outliers, so that there are about three for
    each, but at least 2. Else as `prumerge`.

    Args:
        layer: the first layer that runs with fewer tokens; 0 is before the language model, as in
            the paper.
        merging: "nearest" or "neighbours"; see `prumerge`.

    Raises:
        ValueError: a negative layer, or another `merging`.
    """
    return outliers_kept("prumerge_plus", layer, merging, True)
