"""Rankings for steps in which nothing dropped comes back: by the picture alone, and with what is to come spared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .selection import places
from .tower import Layer
from .view import View

TIE = 1e-4  # more than an even share is so much more of it: where all are paid the same, rounding must not decide


def tower_of(*parts: Any) -> tuple[Layer, ...]:
    """Layers of the vision tower that scores look at."""
    return tuple(layer for part in parts for layer in getattr(part, "tower", ()))


@dataclass(frozen=True)
class Saliency:
    """Attention that a token's patches receive in the vision tower's last read layer, mean over heads."""

    tower = (None,)
    in_prompt = True

    def __call__(self, view: View) -> Float[Tensor, "B N"]:
        """Scores >= 0; 0 for tokens that came without a patch or in an earlier turn."""
        return view.tower.attention().mean(-1)


@dataclass(frozen=True)
class Remembered:
    """What `base` gave a token when it was last read, for later steps too, which have no image to look at."""

    base: Any

    @property
    def tower(self) -> tuple[Layer, ...]:
        """Layers of the vision tower that `base` looks at."""
        return tower_of(self.base)

    @property
    def _key(self) -> str:
        return f"{self!r}"

    def notice(self, view: View) -> None:
        """Remembers, in a prefill that reads visual tokens."""
        fresh = (view.place() >= 0) & view.mask
        if view.step == 0 and bool(fresh.any()):
            here = view.on_columns(fresh.float()) > 0
            found = view.on_columns(self.base(view)).float()
            view.notes[self._key] = torch.where(here, found, view.note(self._key))

    def __call__(self, view: View) -> Float[Tensor, "B N"]:
        """Scores of `base`.

        Raises:
            ValueError: the method was never consulted in a prefill, so there is nothing to remember.
        """
        if self._key not in view.notes:
            raise ValueError(
                f"{self.base} ranks by what a prefill reads, but the schedule acted in none; let it act at step 0"
            )
        return view.of_visual(view.note(self._key))


@dataclass(frozen=True)
class Sparing:
    """While decoding, what the answer has not looked at yet stays longest: what has been looked at goes first.

    A visual token has been looked at once some token of the answer paid it more than an even share of what it paid to
    the visual tokens alive, by `watched`, at a step on which the method was consulted. Those and the others are each
    in the order of `base`, as all are in a prefill. A new turn begins anew.

    Attributes:
        base: any score.
        watched: what a token of the answer pays, `LastQuery` of a layer.
    """

    base: Any
    watched: Any

    @property
    def back(self) -> int:
        """Layers looked back."""
        return max(int(getattr(part, "back", 1)) for part in (self.base, self.watched))

    @property
    def earliest(self) -> int:
        """The first layer before which both parts can rank."""
        return max(int(getattr(part, "earliest", 0)) for part in (self.base, self.watched))

    @property
    def in_prompt(self) -> bool:
        """Whether `base` ranks in prefills alone."""
        return bool(getattr(self.base, "in_prompt", False))

    @property
    def tower(self) -> tuple[Layer, ...]:
        """Layers of the vision tower that `base` looks at."""
        return tower_of(self.base)

    def _key(self, view: View) -> str:
        return f"looked at before layer {view.layer} by {self.watched!r}"

    def notice(self, view: View) -> None:
        """Marks what the newest token looks at, if it is the answer's."""
        notice = getattr(self.base, "notice", None)
        if notice is not None:
            notice(view)
        key = self._key(view)
        if view.step == 0:
            view.notes[key] = torch.zeros(view.tokens.kind.shape, device=view.tokens.kind.device)
            return
        paid = self.watched(view)
        even = paid.sum(1, keepdim=True) / view.alive.clamp(min=1)[:, None]
        view.notes[key] = view.note(key).maximum(view.on_columns((paid > even * (1 + TIE)).float()))

    def __call__(self, view: View) -> Float[Tensor, "B N"]:
        """Scores, whole numbers: minus the place in the order."""
        spared = view.of_visual(view.note(self._key(view))) == 0
        ranked = places(self.base(view), view.mask)
        return torch.where(spared, 0, ranked.shape[1]).float() * -1 - ranked
