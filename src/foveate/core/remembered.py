"""Rankings by the picture alone, kept for steps that have no picture to look at."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .contract import Needs, Score
from .view import View


@dataclass(frozen=True)
class Saliency(Score):
    """Attention that a token's patches receive in the vision tower's last read layer, mean over
    heads.
    """

    own = Needs(in_prompt=True, tower=(None,))

    def __call__(self, view: View, counts: Int[Tensor, B]) -> Float[Tensor, "B N"]:
        """Scores >= 0; 0 for tokens that came without a patch or in an earlier turn."""
        return view.tower.attention().mean(-1)


@dataclass(frozen=True)
class Remembered(Score):
    """What `base` gave a token when it was last read, for later steps too, which have no image to
    look at.
    """

    base: Score

    @property
    def needs(self) -> Needs:
        """As `base`, which is asked in prefills alone; what it gave there serves any step."""
        return replace(Needs.of(self.base), in_prompt=False)

    @property
    def _key(self) -> str:
        """One note for each ranking, whatever the layer."""
        return f"{self!r}"

    def notice(self, view: View) -> None:
        """Remembers, in a prefill that reads visual tokens, before layers where `base` can rank."""
        if view.step > 0 or view.layer < self.needs.earliest:
            return
        fresh = (view.place() >= 0) & view.mask
        if bool(fresh.any()):
            here = (
                view.on_columns(fresh.float()) > 0
            )  # (B C): columns that are read now; the others keep their notes
            found = view.on_columns(self.base(view, view.alive)).float()
            view.notes[self._key] = torch.where(here, found, view.note(self._key))

    def __call__(self, view: View, counts: Int[Tensor, B]) -> Float[Tensor, "B N"]:
        """Scores of `base`.

        Raises:
            ValueError: the method was never consulted in a prefill, so there is nothing to
                remember.
        """
        if self._key not in view.notes:
            raise ValueError(
                f"{self.base} ranks by what a prefill reads, but the schedule acted in none; let it act at step 0"
            )
        return view.of_visual(view.note(self._key))
