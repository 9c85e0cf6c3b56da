"""Diversity of visual tokens: an order in which every beginning covers the whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .contract import Needs, Score
from .pictures import Picture, Rank, pictures
from .view import View


@dataclass(frozen=True)
class MaxMin(Rank):
    """Greedy max-min diversity: each next token is the one farthest, by cosine, from all chosen
    before it.
    """

    def __call__(self, picture: Picture, count: int) -> Float[Tensor, n]:
        """Minus the turn in which a token is chosen; all that are not come last, together."""
        states = picture.states()
        alike = picture.cosines(states, states)
        far = 1 - (alike + alike.T) / 2  # exactly symmetric, so that ties are ties; (n n)
        turn = torch.full(
            (len(picture),), float(len(picture)), device=far.device, dtype=torch.float32
        )
        apart = far.fill_diagonal_(torch.inf).amin(
            1
        )  # the first is the one whose nearest neighbour is farthest
        for number in range(min(count, len(picture))):
            chosen = apart.masked_fill(turn < len(picture), -torch.inf).argmax()
            apart = (
                far[chosen] if number == 0 else apart.minimum(far[chosen])
            )  # to the nearest of the chosen
            turn[chosen] = number
        return -turn


@dataclass(frozen=True)
class Diverse(Score):
    """DivPrune's order of every image (2503.02175, Section 3), whatever the count; images take
    turns by their sizes.
    """

    own = Needs(in_prompt=True)

    def __call__(self, view: View, counts: Int[Tensor, B]) -> Float[Tensor, "B N"]:
        """Scores in (0, 1); 0 for images of earlier turns."""
        scores = torch.zeros(view.visual.shape, device=view.visual.device, dtype=torch.float32)
        for picture in pictures(view):
            turn = -MaxMin()(picture, len(picture))
            scores[picture.sample, picture.places] = 1 - (turn + 0.5) / len(picture)
        return scores
