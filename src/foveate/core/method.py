"""A method: a score, a schedule, and what becomes of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .merging import Merge
from .schedules import Schedule
from .scores import Score, earliest
from .selection import top, top_per_image
from .view import View

SOON = 33  # steps looked at to tell whether a schedule ever acts while decoding


@dataclass(frozen=True)
class Method:
    """Which x how many (x what becomes of the rest). Compose, never override.

    Attributes:
        score: which tokens matter; (B N), higher = keep. `earliest` is the first layer before which it can rank (0 if
            absent), `in_prompt` whether it ranks in prefills alone. If it has a method `notice`, that is called with
            every view that the method is consulted on, also where nothing is dropped, and, if it has
            `notices(layer, step)`, wherever that says so; a schedule may have both, too.
        schedule: how many stay; (B,).
        merge: new hidden states of the kept, or None to let the dropped go. If it has an attribute `score`, it goes
            on from what that score found, and works with no other.
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
        found = getattr(self.merge, "score", self.score)
        if found != self.score:
            raise ValueError(f"the merge goes on from what {found} found, but the score is {self.score}; use both")

    def drops(self, layer: int, step: int) -> bool:
        """Whether the method may drop tokens before `layer` at `step`; decided without tensors."""
        acts = getattr(self.schedule, "acts", None)
        return True if acts is None else bool(acts(layer, step))

    def acts(self, layer: int, step: int) -> bool:
        """Whether the method is to be consulted before `layer` at `step`: it may drop tokens, or takes notice."""
        notices = [part.notices for part in (self.score, self.schedule) if hasattr(part, "notices")]
        return self.drops(layer, step) or any(found(layer, step) for found in notices)

    def check(self, layers: int, family: str = "") -> None:
        """Raises ValueError if the schedule does not fit `layers` layers or a model of this family, or the score."""
        check = getattr(self.schedule, "check", None)
        if check is not None:
            check(layers, *([family] if getattr(self.schedule, "family", "") else []))
        self.check_parts(layers)

    def check_parts(self, layers: int = 128) -> None:
        """Raises ValueError if the schedule acts where the score cannot rank, as far as the schedule tells."""
        acts = getattr(self.schedule, "acts", None)
        if acts is None:
            return
        first = min(layers, earliest(self.score))
        for layer in range(first):
            if any(acts(layer, step) for step in range(SOON)):
                raise ValueError(
                    f"{self.name}: its schedule acts before layer {layer}, and layer {layer} has no layer before it "
                    f"whose attention could rank tokens; let it act at layer {first} or later, or take another score"
                )
        late = any(acts(layer, step) for layer in range(layers) for step in range(1, SOON))
        if late and getattr(self.score, "in_prompt", False):
            raise ValueError(
                f"{self.name}: its schedule drops tokens while decoding, when its score has no states of the prompt "
                "to rank by; take a score of attention, such as last, or a schedule that acts in the prefill alone"
            )

    def select(self, view: View) -> Bool[Tensor, "B N"] | None:
        """Which of `view.visual` stay, or None if all do.

        Raises:
            ValueError: the schedule or the score returned another shape than it must.
        """
        alive = view.alive
        for part in (self.score, self.schedule):
            notice = getattr(part, "notice", None)
            if notice is not None:
                notice(view)
        if not self.drops(view.layer, view.step):
            return None
        counts = self.schedule(view)
        if counts.shape != alive.shape:
            raise ValueError(
                f"the schedule of {self.name} gave shape {tuple(counts.shape)}, expected {tuple(alive.shape)}"
            )
        if counts.is_floating_point():
            raise ValueError(f"the schedule of {self.name} gave {counts.dtype}; expected whole numbers of tokens")
        counts = counts.to(alive).clamp(min=0).minimum(alive)
        view.once("wanted", lambda: counts)
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
