"""Which words concern the picture, and what they look at (SparseVLM, 2410.04417)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...core.contract import Needs, Score
from ...core.scores import asking
from ...core.view import View

NOTE = "raters"


@dataclass(frozen=True)
class TextRaters(Score):
    """Attention that the raters paid in the layer before, mean over them and over heads.

    Raters are found once, before the decoder: those tokens of the instruction that visual ones
    resemble most by softmax, over the instruction, of the products of their states, mean over
    visual tokens, where it reaches its mean.
    """

    own = Needs(earliest=1, in_prompt=True)

    def notices(self, layer: int, step: int) -> bool:
        """Before the decoder."""
        return layer == 0 and step == 0

    def notice(self, view: View) -> None:
        """Finds the raters of this prompt."""
        if self.notices(view.layer, view.step):
            view.notes[NOTE] = view.once(NOTE, lambda: _raters(view))

    def columns(self, view: View) -> Int[Tensor, "B Q"]:
        """The raters; -1 at fills."""
        text = asking(view)
        return torch.where(view.note(NOTE).gather(1, text.clamp(min=0)) > 0, text, -1)

    def paid(self, view: View) -> Float[Tensor, "B Q N"]:
        """What each rater paid to the alive visual tokens, mean over heads; zeros at fills."""
        found: Tensor = view.once(
            "paid", lambda: view.of_visual(view.attention(self.columns(view)).mean(1))
        )
        return found

    def __call__(self, view: View, counts: Int[Tensor, B]) -> Float[Tensor, "B N"]:
        """Scores in [0, 1]."""
        return self.paid(view).sum(1) / (self.columns(view) >= 0).sum(1, keepdim=True).clamp(min=1)


RATERS = TextRaters()


def _raters(view: View) -> Float[Tensor, "B C"]:
    """1 in the raters' columns."""
    text = asking(view)
    here = view.place() >= 0
    row = (
        (view.rows[:, None] == text[..., None]).long().argmax(2)
    )  # where each word's hidden state is, (B Q)
    said = view.hidden.gather(1, row[..., None].expand(-1, -1, view.hidden.shape[2])).float()
    seen = view.states(partial=True).float()
    view.spend(2.0 * seen.numel() * said.shape[1])
    # Each visual token shares itself out among the words: (B N Q), rows that sum to 1. `mean` is
    # what a word gets.
    alike = (seen @ said.mT).masked_fill((text < 0)[:, None], -torch.inf).softmax(2)
    mean = (alike * here[..., None]).sum(1) / here.sum(1, keepdim=True).clamp(min=1)
    average = here.any(1, keepdim=True).float() / (text >= 0).sum(
        1, keepdim=True
    )  # what the softmax sums to, shared out
    chosen = (mean >= average) & (text >= 0)
    return torch.zeros(view.tokens.kind.shape, device=mean.device, dtype=torch.float32).scatter_add(
        1, text.clamp(min=0), chosen.float()
    )
