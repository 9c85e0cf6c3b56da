"""How many tokens stay: schedules whose counts are known before anything runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

from jaxtyping import Int
from torch import Tensor

from .contract import Schedule
from .view import View


def tokens_kept(total: Int[Tensor, B], keep: float | int) -> Int[Tensor, B]:
    """`keep` as a count of `total`: an int is a number of tokens, a float a fraction, rounded half
    up.
    """
    if isinstance(keep, Integral):
        return total.clamp(max=min(int(keep), 2**31))
    return (
        (total.double() * float(keep) + 0.5 + 1e-9).floor().long()
    )  # 0.7 x 45 is 31.5, whatever rounding says


def number_kept(total: int, keep: float | int) -> int:
    """As `tokens_kept`, of one number."""
    if isinstance(keep, Integral):
        return min(int(keep), total)
    return math.floor(total * float(keep) + 0.5 + 1e-9)


def planned_cut(total: int, layers: int, layer: int, keep: float | int) -> list[int]:
    """The plan of one cut before `layer`, which keeps `keep` of `total`; see `Schedule.plan`."""
    kept = number_kept(total, keep)
    return [total if before < layer else kept for before in range(layers)]


def check_keep(keep: float | int) -> None:
    """Raises ValueError unless `keep` is a fraction in [0, 1] (float) or a count >= 0 (int)."""
    fraction = isinstance(keep, Real) and not isinstance(keep, Integral)
    if (
        isinstance(keep, bool)
        or not isinstance(keep, Real)
        or not keep >= 0
        or (fraction and not keep <= 1)
    ):
        raise ValueError(
            f"keep={keep!r}; expected a fraction in [0, 1], like 0.5, or a whole number of tokens, like 64"
        )


def check_layer(layer: int) -> None:
    """Raises ValueError unless `layer` is a whole number, 0 or more."""
    if not isinstance(layer, Integral) or layer < 0:
        raise ValueError(f"layer={layer}; expected a whole number, 0 or more")


def check_depth(layer: int, layers: int) -> None:
    """Raises ValueError if a decoder of `layers` layers has no `layer`, before which a schedule
    drops tokens.
    """
    if layer >= layers:
        raise ValueError(
            f"the schedule cuts before layer {layer}, but the model has layers 0 to {layers - 1}"
        )


@dataclass(frozen=True)
class Cut(Schedule):
    """One cut in the prefill: before layer `layer`, keep `keep` of the visual tokens that each
    sample started with.

    Args:
        layer: the first layer that runs without the dropped tokens.
        keep: a fraction of the tokens (float) or their number (int).

    Raises:
        ValueError: a negative layer, or `keep` out of range.
    """

    layer: int
    keep: float | int

    def __post_init__(self) -> None:
        check_keep(self.keep)
        check_layer(self.layer)

    def acts(self, layer: int, step: int) -> bool:
        """Only before its layer, in a prefill."""
        return step == 0 and layer == self.layer

    def check(self, layers: int, family: str = "") -> None:
        """Raises ValueError if the decoder is too shallow for the cut."""
        check_depth(self.layer, layers)

    def __call__(self, view: View) -> Int[Tensor, B]:
        """Counts to keep."""
        return tokens_kept(view.total, self.keep)

    def plan(self, total: int, layers: int) -> list[int]:
        """All before the cut, and what it keeps from there on."""
        return planned_cut(total, layers, self.layer, self.keep)


def spelled(keep: float | int) -> str:
    """`keep` as text that reads back as the same kind of number: a fraction has a point."""
    text = f"{keep:g}"
    return text if isinstance(keep, Integral) or "." in text or "e" in text else f"{text}.0"


@dataclass(frozen=True)
class ByStep(Schedule):
    """A share of the visual tokens for every step, whatever the input: the control of what adapts
    to it.

    Args:
        layer: the layer before which tokens leave; all deeper ones run without them.
        keep: the share kept at step 0 (the prefill), 1, ...; later steps keep the last.

    Raises:
        ValueError: a negative layer, no shares, or a share out of range.
    """

    layer: int
    keep: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.keep:
            raise ValueError("keep=(); expected a share for at least the prefill, like (0.5, 0.4)")
        for share in self.keep:
            check_keep(float(share))
        check_layer(self.layer)

    def acts(self, layer: int, step: int) -> bool:
        """Before its layer, at the steps that have a share."""
        return layer == self.layer and step < len(self.keep)

    def check(self, layers: int, family: str = "") -> None:
        """Raises ValueError if the decoder is too shallow."""
        check_depth(self.layer, layers)

    def __call__(self, view: View) -> Int[Tensor, B]:
        """Counts to keep."""
        return tokens_kept(view.total, float(self.keep[min(view.step, len(self.keep) - 1)]))

    def plan(self, total: int, layers: int) -> list[int]:
        """All before its layer, and the first step's share from there on."""
        return planned_cut(total, layers, self.layer, float(self.keep[0]))


@dataclass(frozen=True)
class PerLayer(Schedule):
    """A fraction of the visual tokens for every layer, in the prefill: what a search finds.

    Fractions are of the tokens that each sample started with (of each image's, where the method
    ranks within images), so one schedule serves any number of tokens.

    Args:
        keep: the share that each layer of the decoder runs with; never more than the layer before,
            since a dropped token cannot come back.
        family: the `model_type` that the schedule is for; "" for any.

    Raises:
        ValueError: no shares, a share out of [0, 1], or one that is larger than the share before
            it.
    """

    keep: tuple[float, ...]
    family: str = ""

    def __post_init__(self) -> None:
        if not self.keep:
            raise ValueError(
                "keep=(); expected one share for every layer of the decoder, like (1.0, 1.0, 0.5, 0.25)"
            )
        for share in self.keep:
            check_keep(float(share))
        for layer, (before, share) in enumerate(zip(self.keep, self.keep[1:], strict=False), 1):
            if share > before:
                raise ValueError(
                    f"layer {layer} is to keep {share:g} and the layer before it {before:g}; expected shares that "
                    "never grow, since a dropped token cannot come back"
                )

    def acts(self, layer: int, step: int) -> bool:
        """In a prefill, before every layer that keeps less than the one before."""
        return step == 0 and layer < len(self.keep) and self.keep[layer] < (1.0, *self.keep)[layer]

    def check(self, layers: int, family: str = "") -> None:
        """Raises ValueError if the schedule is for a decoder of another depth, or for another
        family.
        """
        if layers != len(self.keep):
            raise ValueError(
                f"the schedule is for a decoder of {len(self.keep)} layers, but this model has {layers}; "
                "search one for it: foveate search MODEL --out file.json"
            )
        if family and self.family and family != self.family:
            raise ValueError(
                f"the schedule is for a model of the family {self.family!r}, but this one is {family!r}; "
                "search one for it: foveate search MODEL --out file.json"
            )

    def __call__(self, view: View) -> Int[Tensor, B]:
        """Counts to keep."""
        return tokens_kept(view.total, float(self.keep[view.layer]))

    def plan(self, total: int, layers: int) -> list[int]:
        """Each layer's share.

        Raises:
            ValueError: the schedule is for a decoder of another depth.
        """
        self.check(layers)
        return [number_kept(total, float(share)) for share in self.keep]


def mean_keep(keep: Sequence[float]) -> float:
    """Share of the visual tokens that a layer runs with, mean over layers."""
    return sum(keep) / len(keep)
