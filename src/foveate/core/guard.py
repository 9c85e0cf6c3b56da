"""Inputs unlike those that a setting was certified on run unpruned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .contract import Schedule
from .tokens import Kind
from .view import View

FEATURES = ("visual tokens", "text tokens", "likeness")


def features(view: View) -> Float[Tensor, "B 3"]:
    """What an input looks like before a layer of the prefill, in the order of `FEATURES`.

    Visual tokens and text tokens are numbers. Likeness is how much alike the visual tokens' states
    are: the length of their mean direction, in [0, 1].
    """
    real = view.rows >= 0
    kinds = view.tokens.kind.gather(1, view.rows.clamp(min=0))
    text = (real & (kinds != Kind.IMAGE) & (kinds != Kind.PADDING)).sum(1)
    states = torch.nn.functional.normalize(view.states(partial=True).float(), dim=-1)
    here = view.place() >= 0
    mean = (states * here[..., None]).sum(1) / here.sum(1).clamp(min=1)[:, None]
    return torch.stack([view.total.float(), text.float(), mean.norm(dim=-1)], 1)


@dataclass(frozen=True)
class Guarded(Schedule):
    """A schedule for inputs within limits; others keep all their tokens.

    The limits are looked at once, before layer `first` of each prefill with pictures, and hold for
    its whole answer.

    Attributes:
        inner: the schedule.
        limits: least and most of each of `FEATURES`.
        first: the first layer before which the schedule may act.
    """

    inner: Schedule
    limits: tuple[tuple[float, float], ...]
    first: int

    _NOTE = "outside the limits"

    def notices(self, layer: int, step: int) -> bool:
        """Before the first layer of every prefill."""
        return layer == self.first and step == 0

    def notice(self, view: View) -> None:
        """Notes on every column of a sample whether it is outside the limits."""
        if not self.notices(view.layer, view.step):
            return
        fresh = (view.place() >= 0).any(1)
        outside = _outside(features(view), self.limits)
        before = view.note(self._NOTE)
        now = outside.float()[:, None].expand_as(before)
        view.notes[self._NOTE] = torch.where(fresh[:, None], now, before)

    def __call__(self, view: View) -> Int[Tensor, B]:
        """The schedule's counts; all that are alive of a sample outside the limits."""
        outside = view.note(self._NOTE)[:, 0] > 0
        return torch.where(outside, view.alive, self.inner(view).to(view.alive))

    def plan(self, total: int, layers: int) -> Sequence[int | float] | None:
        """None: it hangs on the input."""
        return None


def _outside(
    found: Float[Tensor, "B F"], limits: Sequence[tuple[float, float]]
) -> Float[Tensor, B]:
    """Which samples have a feature out of its limits."""
    least, most = (found.new_tensor(end) for end in zip(*limits, strict=True))
    return ((found < least) | (found > most)).any(1)


@dataclass(frozen=True)
class ForModel(Schedule):
    """A schedule that refuses other models than the one that it was made for.

    Attributes:
        inner: the schedule.
        family: the model's `model_type`; "" for any.
        depth: layers of its decoder.
    """

    inner: Schedule
    family: str
    depth: int

    def __call__(self, view: View) -> Int[Tensor, B]:
        """The schedule's counts."""
        return self.inner(view)

    def plan(self, total: int, layers: int) -> Sequence[int | float] | None:
        """The schedule's."""
        return self.inner.plan(total, layers)

    def check(self, layers: int, family: str = "") -> None:
        """Raises ValueError for another family or depth."""
        other = bool(family and self.family) and family != self.family
        if layers != self.depth or other:
            raise ValueError(
                f"the setting was tuned for a {self.family} model of {self.depth} layers; this one is "
                f"{family or 'a model'} of {layers} layers: tune a setting for it with `foveate tune`"
            )
        self.inner.check(layers, family)
