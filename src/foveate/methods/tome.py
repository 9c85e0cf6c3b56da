"""ToMe: merges the most alike tokens in pairs."""

from __future__ import annotations

from ..core.knobs import checked
from ..core.matching import IntoOwners, LeftFirst, Matching
from ..core.method import Method
from ..core.pictures import ByImage, EachImage, MixImage, Share
from ..core.schedules import spelled


@checked
def tome(layer: int = 0, keep: float | int = 0.25, rounds: int = 8) -> Method:
    """Before layer `layer`, merge the visual tokens of each image whose keys in the vision tower
    are most alike.

    Paper: "Token Merging: Your ViT But Faster", Bolya et al., arXiv 2210.09461: bipartite soft
    matching by keys (mean over heads), the most similar pairs of a round become their mean,
    weighted by size.

    Where: before the language model; layer 0.

    Deviations: done after the tower, not between its layers: stock towers and projectors give as
    many tokens as the prompt has places, so the tower's own cost stays what it was. All rounds
    match by the keys of the layer whose output the model reads, merged as the tokens are. Attention
    weighted by size (the paper's equation 1) is off, as in what others compare with;
    ``weigh=clusters`` puts it into the language model, and is far better.

    Args:
        layer: the first layer that runs with fewer tokens; 0 is before the language model.
        keep: visual tokens kept of each image, a fraction (float) or a number (int).
        rounds: over which merging is spread, as over layers in the paper.

    Raises:
        ValueError: a negative layer, `keep` out of range, or no rounds.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds}; expected 1 or more")
    share = Share(keep)
    matching = Matching(share, rounds)
    name = f"tome:layer={layer},keep={spelled(keep)}" + ("" if rounds == 8 else f",rounds={rounds}")
    return Method(
        ByImage(LeftFirst(matching), share),
        EachImage(share, layer),
        MixImage(IntoOwners(matching)),
        name=name,
    )
