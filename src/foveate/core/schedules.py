"""How many tokens stay: callables from a `View` to (B,), the visual tokens to keep of each sample.

A schedule may also say, without tensors, when it acts at all (`acts`), and refuse a decoder it does not fit
(`check`); the engine then spends nothing where it does not act. A plain function is a schedule that may act anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Protocol, runtime_checkable

from jaxtyping import Int
from torch import Tensor

from .view import View


@runtime_checkable
class Schedule(Protocol):
    """What `Method` needs of a schedule."""

    def __call__(self, view: View) -> Int[Tensor, B]:
        """Visual tokens to keep of each sample; more than are alive means all."""
        ...


def tokens_kept(total: Int[Tensor, B], keep: float | int) -> Int[Tensor, B]:
    """`keep` as a count of `total`: an int is a number of tokens, a float a fraction, rounded half up."""
    if isinstance(keep, Integral):
        return total.clamp(max=min(int(keep), 2**31))
    return (total.double() * float(keep) + 0.5 + 1e-9).floor().long()  # 0.7 x 45 is 31.5, whatever rounding says


def check_keep(keep: float | int) -> None:
    """Raises ValueError unless `keep` is a fraction in [0, 1] (float) or a count >= 0 (int)."""
    fraction = isinstance(keep, Real) and not isinstance(keep, Integral)
    if isinstance(keep, bool) or not isinstance(keep, Real) or not keep >= 0 or (fraction and not keep <= 1):
        raise ValueError(
            f"keep={keep!r}; expected a fraction in [0, 1], like 0.5, or a whole number of tokens, like 64"
        )


@dataclass(frozen=True)
class Cut:
    """One cut in the prefill: before layer `layer`, keep `keep` of the visual tokens that each sample started with.

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
        if not isinstance(self.layer, Integral) or self.layer < 0:
            raise ValueError(f"layer={self.layer}; expected a whole number, 0 or more")

    def acts(self, layer: int, step: int) -> bool:
        """Only before its layer, in a prefill."""
        return step == 0 and layer == self.layer

    def check(self, layers: int) -> None:
        """Raises ValueError if the decoder is too shallow for the cut."""
        if self.layer >= layers:
            raise ValueError(f"the schedule cuts before layer {self.layer}, but the model has layers 0 to {layers - 1}")

    def __call__(self, view: View) -> Int[Tensor, B]:
        """Counts to keep."""
        return tokens_kept(view.total, self.keep)


def spelled(keep: float | int) -> str:
    """`keep` as text that reads back as the same kind of number: a fraction has a point."""
    text = f"{keep:g}"
    return text if isinstance(keep, Integral) or "." in text or "e" in text else f"{text}.0"


@dataclass(frozen=True)
class ByStep:
    """A share of the visual tokens for every step, whatever the input: the control of what adapts to it.

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
        if not isinstance(self.layer, Integral) or self.layer < 0:
            raise ValueError(f"layer={self.layer}; expected a whole number, 0 or more")

    def acts(self, layer: int, step: int) -> bool:
        """Before its layer, at the steps that have a share."""
        return layer == self.layer and step < len(self.keep)

    def check(self, layers: int) -> None:
        """Raises ValueError if the decoder is too shallow."""
        if self.layer >= layers:
            raise ValueError(f"tokens leave before layer {self.layer}, but the model has layers 0 to {layers - 1}")

    def __call__(self, view: View) -> Int[Tensor, B]:
        """Counts to keep."""
        return tokens_kept(view.total, float(self.keep[min(view.step, len(self.keep) - 1)]))


def placed(at: tuple[float | int, ...], layers: int) -> tuple[int, ...]:
    """Places in a decoder as layers: whole numbers are layers, fractions shares of the depth, rounded half up.

    Fractions are layer 1 at least, and each at least one after the place before it, as in very shallow decoders.
    """
    found: list[int] = []
    for place in at:
        if isinstance(place, Integral):
            found.append(int(place))
        else:
            found.append(max(int(layers * place + 0.5), found[-1] + 1 if found else 1))
    return tuple(found)


@dataclass(frozen=True)
class Stairs:
    """Several cuts in the prefill: before place `at[i]`, keep `keep[i]` of the tokens that each sample started with.

    Args:
        at: layers (ints) or shares of the decoder's depth (floats in (0, 1)), ascending.
        keep: fractions (floats) or numbers of tokens (ints), one for each place.

    Raises:
        ValueError: places that do not ascend, or not one keep for each.
    """

    at: tuple[float | int, ...]
    keep: tuple[float | int, ...]

    def __post_init__(self) -> None:
        if not self.at or len(self.at) != len(self.keep):
            raise ValueError(f"got {len(self.at)} layers and {len(self.keep)} keeps; expected one keep for each layer")
        for keep in self.keep:
            check_keep(keep)
        whole = [isinstance(place, Integral) for place in self.at]
        right = all(whole) or (not any(whole) and all(0 < place < 1 for place in self.at))
        if not right or list(self.at) != sorted(set(self.at)) or self.at[0] < 0:
            raise ValueError(
                f"layers={self.at}; expected ascending layers, like 8/16/24, or shares of the depth, like 0.25/0.5/0.75"
            )

    def acts(self, layer: int, step: int) -> bool:
        """In a prefill, before its layers; before any but the first, where they hang on the depth."""
        return step == 0 and (layer in self.at if isinstance(self.at[0], Integral) else layer > 0)

    def check(self, layers: int) -> None:
        """Raises ValueError if the decoder is too shallow."""
        last = self.places(layers)[-1]
        if last >= layers:
            raise ValueError(f"the schedule cuts before layer {last}, but the model has layers 0 to {layers - 1}")

    def __call__(self, view: View) -> Int[Tensor, B]:
        """Counts to keep."""
        places = self.places(view.layers)
        now = view.layer in places
        return tokens_kept(view.total, self.keep[places.index(view.layer)]) if now else view.alive

    def places(self, layers: int) -> tuple[int, ...]:
        """The layers in a decoder of `layers`."""
        return placed(self.at, layers)


@dataclass(frozen=True)
class PerLayer:
    """A count for every layer of the prefill: layer l runs with `keep[l]` of the tokens that each sample started with.

    Args:
        keep: fractions (floats) or numbers of tokens (ints); a layer never has more than the one before it.

    Raises:
        ValueError: no keeps, or one out of range.
    """

    keep: tuple[float | int, ...]

    def __post_init__(self) -> None:
        if not self.keep:
            raise ValueError("keep=(); expected a share or a number of tokens for every layer of the decoder")
        for keep in self.keep:
            check_keep(keep)

    def acts(self, layer: int, step: int) -> bool:
        """In a prefill, where the count changes."""
        before = self.keep[layer - 1] if 0 < layer < len(self.keep) else 1.0
        return step == 0 and layer < len(self.keep) and self.keep[layer] != before

    def check(self, layers: int) -> None:
        """Raises ValueError unless the decoder has as many layers as there are counts."""
        if layers != len(self.keep):
            raise ValueError(f"the schedule has counts for {len(self.keep)} layers, but the model has {layers}")

    def __call__(self, view: View) -> Int[Tensor, B]:
        """Counts to keep."""
        return tokens_kept(view.total, self.keep[view.layer])
