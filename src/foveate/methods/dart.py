"""DART: tokens that duplicate a few pivots least."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.contract import Needs, Score
from ..core.knobs import checked
from ..core.method import Method
from ..core.schedules import Cut, spelled
from ..core.scores import asking
from ..core.selection import top
from ..core.view import View


@dataclass(frozen=True)
class LeastDuplicate(Score):
    """Pivots first, then what each of them finds least like itself, an equal share of the wanted
    tokens for each.

    Attributes:
        pivots: visual pivots, those with the largest keys (1-norm) in the layer before.
        text_pivots: pivots among the instruction's tokens, likewise; they choose, and stay anyway.
    """

    pivots: int = 4
    text_pivots: int = 4
    own = Needs(earliest=1, in_prompt=True, counts=True)

    def __call__(self, view: View, counts: Int[Tensor, B]) -> Float[Tensor, "B N"]:
        """Scores >= 0: the earlier chosen, the higher; tokens of earlier turns, which cannot be
        compared, are first.
        """
        here = view.place() >= 0
        states = view.states(partial=True).float()
        size = view.keys().float().abs().sum(-1)
        first = top(view.of_visual(size), here, counts.clamp(max=self.pivots))
        old = view.mask & ~here
        picks, valid = self._pivots(view, size, states, first)
        view.spend(2.0 * picks.shape[0] * picks.shape[1] * states.shape[1] * states.shape[2])
        alike = (
            torch.nn.functional.normalize(picks, dim=-1)
            @ torch.nn.functional.normalize(states, dim=-1).mT
        )
        left = (counts - (old | first).sum(1)).clamp(min=0)
        turns = valid.sum(1)
        rank = valid.cumsum(1) - 1
        score = old.float() * (picks.shape[1] + 2) + first.float() * (picks.shape[1] + 1)
        # The pivots take turns: of what the budget leaves, each takes an equal share of those least
        # like it, and the first of them one more each where it does not divide. Later turns choose
        # among what has no score yet.
        for turn in range(picks.shape[1]):
            share = (
                left // turns.clamp(min=1) + (rank[:, turn] < left % turns.clamp(min=1))
            ) * valid[:, turn]
            chosen = top(-alike[:, turn], here & (score == 0), share)
            score = score + chosen.float() * (picks.shape[1] - turn)
        return score

    def _pivots(
        self, view: View, size: Tensor, states: Tensor, first: Tensor
    ) -> tuple[Float[Tensor, "B P D"], Tensor]:
        """States of the visual and then of the text pivots, the largest first, and which are real."""
        order = (
            view.of_visual(size)
            .masked_fill(~first, -1.0)
            .argsort(dim=1, descending=True, stable=True)
        )
        order = order[:, : self.pivots]
        seen = states.gather(1, order[..., None].expand(-1, -1, states.shape[2]))
        columns: Int[Tensor, "B Q"] = asking(view) if self.text_pivots else order[:, :0]
        large = size.gather(1, columns.clamp(min=0)).masked_fill(columns < 0, -1.0)
        columns = columns.gather(1, large.argsort(dim=1, descending=True, stable=True))[
            :, : self.text_pivots
        ]
        row = (
            (view.rows[:, None] == columns[..., None]).long().argmax(2)
        )  # where their hidden states are, (B P)
        said = view.hidden.gather(1, row[..., None].expand(-1, -1, states.shape[2])).float()
        return torch.cat([seen, said], 1), torch.cat([first.gather(1, order), columns >= 0], 1)


@checked
def dart(layer: int = 2, keep: float | int = 0.25, pivots: int = 4, text_pivots: int = 4) -> Method:
    """Before layer `layer`, keep a few pivots and the visual tokens that duplicate them least.

    Paper: "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters
    More", Wen et al., arXiv 2502.11494: pivots by the norm of their keys; of the rest those whose
    cosine similarity to a pivot is least, each pivot choosing an equal share in turn.

    Where: inside the language model; layer 2.

    Deviations: keys are rotated ones, of the layer before; similarity is of the states that enter
    the layer, as the paper writes it (the code passes them through the decoder's last norm first).
    `keep` includes the pivots, to the token (the code keeps a few more or fewer). Of an image after
    which no text comes, the last token is the text.

    Args:
        layer: the first layer that runs with fewer tokens; 1 or more.
        keep: visual tokens kept, a fraction (float) or a number (int).
        pivots: visual pivots.
        text_pivots: pivots among the instruction's tokens.

    Raises:
        ValueError: layer < 1, `keep` out of range, a negative number of pivots, or none at all.
    """
    if layer < 1:
        raise ValueError(
            f"layer={layer}; expected 1 or more: pivots are found by the keys of the layer before"
        )
    if pivots < 0 or text_pivots < 0 or pivots + text_pivots < 1:
        raise ValueError(
            f"pivots={pivots}, text_pivots={text_pivots}; expected 0 or more, one at least in all"
        )
    name = f"dart:layer={layer},keep={spelled(keep)},pivots={pivots},text_pivots={text_pivots}"
    return Method(LeastDuplicate(pivots, text_pivots), Cut(layer, keep), name=name)
