"""LLaVA-PruMerge: keeps outliers, merges the rest."""

from __future__ import annotations

from ...core.knobs import checked
from ...core.method import Method
from ...core.pictures import ByImage, EachImage, MixImage
from .outliers import MERGES, Merging, Outliers, OutliersFirst


@checked
def prumerge(layer: int = 0, merging: Merging = "nearest") -> Method:
    """Before layer `layer`, keep the tokens whose attention in the tower stands out, and merge the
    rest into them.

    Paper: "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", Shang
    et al., arXiv 2403.15388: outliers of [CLS] attention by the interquartile range; the others are
    merged. Checked against the authors' code; the paper's own words on merging were not at hand.

    Where: before the language model; layer 0.

    Deviations: attention and keys are those of the layer whose output the model reads, as in the
    paper; the authors' code takes the tower's last, as one head of the tower's whole width. By
    default each dropped token goes into the kept one whose key is nearest, and a cluster becomes
    its mean weighted by attention. ``merging="neighbours"`` is the authors' code: to each kept
    token its 32 nearest are added, kept ones too, weighted by attention; its one further token, the
    sum of all dropped, has no place in the prompt and is left out. Tokens merge after the
    projector. At least one token stays.

    Args:
        layer: the first layer that runs with fewer tokens; 0 is before the language model, as in
            the paper.
        merging: "nearest" or "neighbours".

    Raises:
        ValueError: a negative layer, or another `merging`.
    """
    return outliers_kept("prumerge", layer, merging, False)


def outliers_kept(name: str, layer: int, merging: Merging, spaced: bool) -> Method:
    """What `prumerge` and `prumerge_plus` share: the same but for the spaced tokens."""
    if merging not in MERGES:
        raise ValueError(f"merging={merging!r}; expected nearest or neighbours")
    name += f":layer={layer}" + ("" if merging == "nearest" else f",merging={merging}")
    found = Outliers(spaced)
    score = ByImage(OutliersFirst(found), found)
    return Method(score, EachImage(found, layer), MixImage(MERGES[merging]), name=name)
