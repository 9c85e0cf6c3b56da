"""A method: a score, a schedule, and what becomes of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .merging import Merge
from .schedules import Schedule
from .scores import Score
from .selection import top, top_per_image
from .view import View


@dataclass(frozen=True)
class Method:
    """Which x how many (x what becomes of the rest). Compose, never override.

    Attributes:
        score: which tokens matter; (B N), higher = keep. If it has a method `notice`, that is called with every view
            that the method is consulted on, also where nothing is dropped.
        schedule: how many stay; (B,).
        merge: new hidden states of the kept, or None to let the dropped go.
        within: "sample" ranks all visual tokens of a sample together; "image" gives every image its share.
        name: for traces and tables.
    """

    score: Score
    schedule: Schedule
    merge: Merge | None = None
    within: Literal["sample", "image"] = "sample"
    name: str = "method"

    def __post_init__(self) -> None:
        if self.within not in ("sample", "image"):
            raise ValueError(f"within={self.within!r}; expected sample or image")

    def acts(self, layer: int, step: int) -> bool:
        """Whether the method may drop tokens before `layer` at `step`; decided without tensors."""
        acts = getattr(self.schedule, "acts", None)
        return True if acts is None else bool(acts(layer, step))

    def check(self, layers: int, family: str = "") -> None:
        """Raises ValueError if the schedule does not fit a decoder of `layers` layers, or a model of this family."""
        check = getattr(self.schedule, "check", None)
        if check is None:
            return
        if getattr(self.schedule, "family", ""):
            check(layers, family)
        else:
            check(layers)

    def select(self, view: View) -> Bool[Tensor, "B N"] | None:
        """Which of `view.visual` stay, or None if all do.

        Raises:
            ValueError: the schedule or the score returned another shape than it must.
        """
        alive = view.alive
        notice = getattr(self.score, "notice", None)
        if notice is not None:
            notice(view)
        counts = self.schedule(view)
        if counts.shape != alive.shape:
            raise ValueError(
                f"the schedule of {self.name} gave shape {tuple(counts.shape)}, expected {tuple(alive.shape)}"
            )
        if counts.is_floating_point():
            raise ValueError(f"the schedule of {self.name} gave {counts.dtype}; expected whole numbers of tokens")
        counts = counts.to(alive).clamp(min=0).minimum(alive)
        if bool((counts == alive).all()):
            return None
        if not bool(counts.any()):
            return torch.zeros_like(view.mask)
        scores: Float[Tensor, "B N"] = self.score(view)
        if scores.shape != view.visual.shape:
            raise ValueError(
                f"the score of {self.name} gave shape {tuple(scores.shape)}, expected {tuple(view.visual.shape)}"
            )
        if self.within == "sample":
            return top(scores, view.mask, counts)
        image = view.tokens.image.gather(1, view.visual.clamp(min=0))
        return top_per_image(scores, view.mask, counts, image)
