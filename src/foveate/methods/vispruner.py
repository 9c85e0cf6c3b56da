"""VisPruner: attended by the tower, plus diverse ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.contract import Needs
from ..core.knobs import checked
from ..core.method import Method
from ..core.pictures import ByImage, EachImage, Picture, Rank, Share
from ..core.schedules import spelled

ROUND = 8  # duplicates removed at a time, in the authors' code


@dataclass(frozen=True)
class ImportantDiverse(Rank):
    """Ranks: important tokens, then those that outlive the removal of duplicates, then these, last
    removed first.
    """

    important: Share

    own = Needs(tower=(None,))

    def __call__(self, picture: Picture, count: int) -> Float[Tensor, n]:
        """Scores."""
        states = picture.of(picture.view.tower.states())
        order = picture.attention().argsort(descending=True, stable=True)
        first = self.important.of(count)
        rest = order[first:]
        diverse = count - first
        turn = 0
        score = torch.zeros(len(picture), device=states.device, dtype=torch.float32)
        score[order[:first]] = 2.0
        while len(rest) > max(1, diverse):
            # Every second token is compared with the others; those most like one of them leave, a
            # few at a time.
            even = rest[::2]
            odd = rest[1::2]
            alike = picture.cosines(states[even], states[odd]).amax(1)
            gone = even[
                alike.argsort(descending=True, stable=True)[: min(ROUND, len(rest) - diverse)]
            ]
            turn += 1
            score[gone] = -1 / turn  # the later it left, the higher
            rest = rest[~torch.isin(rest, gone)]
        score[rest] = 1.0
        return score


@checked
def vispruner(layer: int = 0, keep: float | int = 0.25, important: float = 0.5) -> Method:
    """Before layer `layer`, keep the tokens the vision tower attends to, and diverse ones among the
    rest.

    Paper: "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in
    VLMs", Zhang et al., arXiv 2412.01818: of the tokens that are not important, those most like
    another are removed, a few at a time, by matching every second token with the others.

    Where: before the language model; layer 0.

    Deviations: checked against the authors' code. Between rounds the rest stays in the order of its
    attention; the code reorders it. An odd count's half is rounded up (the code: down). Attention
    is that of the layer whose output the model reads.

    Args:
        layer: the first layer that runs with fewer tokens; 0 is before the language model, as in
            the paper.
        keep: visual tokens kept of each image, a fraction (float) or a number (int).
        important: share of the kept that attention chooses; half in the paper.

    Raises:
        ValueError: a negative layer, or a share out of range.
    """
    count = Share(keep)
    name = f"vispruner:layer={layer},keep={spelled(keep)},important={spelled(float(important))}"
    return Method(
        ByImage(ImportantDiverse(Share(float(important))), count),
        EachImage(count, layer),
        name=name,
    )
