"""Several cuts, at layers or at shares of the decoder's depth."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

from jaxtyping import Int
from torch import Tensor

from .contract import Schedule
from .schedules import check_depth, check_keep, number_kept, tokens_kept
from .view import View


def placed(at: tuple[float | int, ...], layers: int) -> tuple[int, ...]:
    """Places in a decoder as layers: whole numbers are layers, fractions shares of the depth,
    rounded half up.

    Fractions are layer 1 at least, and each at least one after the place before it, as in very
    shallow decoders.
    """
    found: list[int] = []
    for place in at:
        if isinstance(place, Integral):
            found.append(int(place))
        else:
            found.append(max(int(layers * place + 0.5), found[-1] + 1 if found else 1))
    return tuple(found)


@dataclass(frozen=True)
class Stairs(Schedule):
    """Several cuts in the prefill: before place `at[i]`, keep `keep[i]` of the tokens that each
    sample started with.

    Args:
        at: layers (ints) or shares of the decoder's depth (floats in (0, 1)), ascending.
        keep: fractions (floats) or numbers of tokens (ints), one for each place.
        of_left: whether fractions are of the tokens that are left by then, as for a stage that
            comes after others.

    Raises:
        ValueError: places that do not ascend, or not one keep for each.
    """

    at: tuple[float | int, ...]
    keep: tuple[float | int, ...]
    of_left: bool = False

    def __post_init__(self) -> None:
        if not self.at or len(self.at) != len(self.keep):
            raise ValueError(
                f"got {len(self.at)} layers and {len(self.keep)} keeps; expected one keep for each layer"
            )
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

    def check(self, layers: int, family: str = "") -> None:
        """Raises ValueError if the decoder is too shallow."""
        check_depth(self.places(layers)[-1], layers)

    def __call__(self, view: View) -> Int[Tensor, B]:
        """Counts to keep."""
        places = self.places(view.layers)
        if view.layer not in places:
            return view.alive
        return tokens_kept(
            view.alive if self.of_left else view.total, self.keep[places.index(view.layer)]
        )

    def plan(self, total: int, layers: int) -> list[int | float]:
        """What each place keeps: a number, or with `of_left` a share of what is left there; `total`
        elsewhere.
        """
        found: list[int | float] = [total] * layers
        for place, keep in zip(self.places(layers), self.keep, strict=True):
            if place < layers:
                found[place] = keep if self.of_left else number_kept(total, keep)
        return found

    def places(self, layers: int) -> tuple[int, ...]:
        """The layers in a decoder of `layers`."""
        return placed(self.at, layers)
