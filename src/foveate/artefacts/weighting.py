"""How kept tokens speak for the dropped, as files have it.

These are the knobs of `Method.weighted`, for methods that come from a file and merge nothing by
themselves.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, cast, get_args

from ..core.method import MergeKind, Method, WeighKind
from ..core.schedules import PerLayer
from ..core.scores import Random

WEIGHS = tuple(kind for kind in get_args(WeighKind) if kind != "clusters")
MERGES = tuple(kind for kind in get_args(MergeKind) if kind != "own")


@dataclass(frozen=True)
class Weighting:
    """What was searched or trained with, by default nothing; see `Method.weighted` for what the
    knobs mean.

    Attributes:
        weigh: whom a dropped token joins, or "none".
        merge: "mean", or "none".
        strength: of weights.
        place: of weigh "mixed".
        cutoff: of merge "mean".

    Raises:
        ValueError: as `Method.weighted`; or a kind that needs a merge of the method's own, of which
            there is none here.
    """

    weigh: str = "none"
    merge: str = "none"
    strength: float = 1.0
    place: float | None = None
    cutoff: float | None = None

    def __post_init__(self) -> None:
        for key, kinds in (("weigh", WEIGHS), ("merge", MERGES)):
            if getattr(self, key) not in kinds:
                raise ValueError(
                    f"{key}={getattr(self, key)!r}; expected one of {', '.join(kinds)} (a schedule "
                    "or a predictor has no merge of its own)"
                )
        self._put(Method(Random(), PerLayer((1.0,))))  # refuses numbers that do not go together

    def on(self, method: Method) -> Method:
        """The method with these weights and means, under its own name; the method itself if there
        are none.
        """
        if self.weigh == "none" and self.merge == "none":
            return method
        return self._put(method).named(method.name)

    def said(self, method: Method, **knobs: Any) -> Method:
        """The method with these weights and means, or with what is said instead; its name says what
        was said.

        Args:
            method: with a name of its own.
            knobs: of `Method.weighted`; None says nothing.
        """
        return self.told(**knobs).on(method).named(method.name + Weighting.spelled(**knobs))

    def _put(self, method: Method) -> Method:
        weigh, merge = cast(WeighKind, self.weigh), cast(MergeKind, self.merge)
        return method.weighted(weigh, merge, self.strength, self.place, self.cutoff)

    def told(self, **knobs: Any) -> Weighting:
        """These, with what is told instead, of the knobs of `Method.weighted`.

        None and merge "own" say nothing. Where another kind is told, the numbers that go with a
        kind start from their defaults.
        """
        said = self._said(knobs)
        facts = asdict(self)
        if said.get("weigh", self.weigh) != self.weigh:
            facts |= {"strength": 1.0, "place": None}
        if said.get("merge", self.merge) != self.merge:
            facts["cutoff"] = None
        return Weighting(**{**facts, **said})

    @staticmethod
    def spelled(**knobs: Any) -> str:
        """What `told` was told, as the end of a method's name: ",weigh=nearest", or ""."""
        said = Weighting._said(knobs)
        return "".join(
            f",{key}={value:g}" if isinstance(value, float) else f",{key}={value}"
            for key, value in said.items()
        )

    @staticmethod
    def _said(knobs: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in knobs.items() if v is not None and (k, v) != ("merge", "own")}

    @property
    def facts(self) -> dict[str, Any]:
        """For a file: what differs from the defaults.

        Files without weights and means are as ever.
        """
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if getattr(self, f.name) != f.default
        }


UNWEIGHED = Weighting()
