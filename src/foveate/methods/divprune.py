"""DivPrune: the tokens that lie farthest from one another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.method import Method
from ..core.pictures import ByImage, EachImage, Picture, Share
from ..core.schedules import spelled


@dataclass(frozen=True)
class MaxMin:
    """Greedy max-min diversity: each next token is the one farthest, by cosine, from all chosen before it."""

    def __call__(self, picture: Picture, count: int) -> Float[Tensor, n]:
        """Minus the turn in which a token is chosen; all that are not come last, together."""
        states = picture.states()
        alike = picture.cosines(states, states)
        far = 1 - (alike + alike.T) / 2  # exactly symmetric, so that ties are ties
        turn = torch.full((len(picture),), float(len(picture)), device=far.device)
        apart = far.fill_diagonal_(torch.inf).amin(1)  # the first is the one whose nearest neighbour is farthest
        for number in range(min(count, len(picture))):
            chosen = apart.masked_fill(turn < len(picture), -torch.inf).argmax()
            apart = far[chosen] if number == 0 else apart.minimum(far[chosen])
            turn[chosen] = number
        return -turn


def divprune(layer: int = 0, keep: float | int = 0.25) -> Method:
    """Before layer `layer`, keep the visual tokens of each image that are most diverse.

    Paper: "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", Alvar et al., arXiv 2503.02175,
    (max-min diversity, solved greedily; distance is one minus the cosine of the tokens). Checked against the authors'
    code.

    Deviations: each image of a sample is a problem of its own. Original positions are kept.

    Args:
        layer: the first layer that runs with fewer tokens; 0 is before the language model, as in the paper.
        keep: visual tokens kept of each image, a fraction (float) or a number (int).

    Raises:
        ValueError: a negative layer, or `keep` out of range.
    """
    count = Share(keep)
    return Method(
        ByImage(MaxMin(), count), EachImage(count, layer), name=f"divprune:layer={layer},keep={spelled(keep)}"
    )
