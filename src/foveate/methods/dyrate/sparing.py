"""A ranking for steps in which nothing dropped comes back: what is still to be looked at is spared."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...core.contract import Score
from ...core.selection import places
from ...core.view import View

TIE = 1e-4  # more than an even share is so much more of it: where all are paid the same, rounding must not decide


@dataclass(frozen=True)
class Sparing(Score):
    """While decoding, what the answer has not looked at yet stays longest: what has been looked at
    goes first.

    A visual token has been looked at once some token of the answer paid it more than an even share
    of what it paid to the visual tokens alive, by `watched`, at a step on which the method was
    consulted. Those and the others are each in the order of `base`, as all are in a prefill. A new
    turn begins anew.

    Attributes:
        base: any score.
        watched: what a token of the answer pays, `LastQuery` of a layer.
    """

    base: Score
    watched: Score

    def _key(self, view: View) -> str:
        """One note for each layer."""
        return f"looked at before layer {view.layer} by {self.watched!r}"

    def notice(self, view: View) -> None:
        """Marks what the newest token looks at, if it is the answer's."""
        key = self._key(view)
        if view.step == 0:
            view.notes[key] = torch.zeros(
                view.tokens.kind.shape, device=view.tokens.kind.device, dtype=torch.float32
            )
            return
        paid = self.watched(view, view.alive)
        even = paid.sum(1, keepdim=True) / view.alive.clamp(min=1)[:, None]
        view.notes[key] = view.note(key).maximum(view.on_columns((paid > even * (1 + TIE)).float()))

    def __call__(self, view: View, counts: Int[Tensor, B]) -> Float[Tensor, "B N"]:
        """Scores, whole numbers: minus the place in the order."""
        # Places 0 to N - 1 in the order of `base`; what has been looked at comes N places later,
        # after all others.
        spared = view.of_visual(view.note(self._key(view))) == 0
        ranked = places(self.base(view, counts), view.mask)
        return torch.where(spared, 0, ranked.shape[1]).float() * -1 - ranked
