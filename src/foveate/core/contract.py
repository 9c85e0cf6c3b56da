"""The contract: what a score, a schedule and a merge are given, and what each of them may bring.

Subclass `Score`, `Schedule` or `Merge`, write `__call__`, and override what else applies:
everything has a default. A part that wraps others keeps them in its attributes, and forwards
nothing: what they need and notice is found there. A `Method` takes plain functions of a view too;
inside a wrapper such a function is `ScoreOf(function)`.

Shapes: B samples, N visual tokens alive in the fullest sample, C columns of the input, D the
decoder's width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

from jaxtyping import Bool, Float, Int
from torch import Tensor

from .tower import Layer
from .view import View

if TYPE_CHECKING:
    from .weighing import AtCut


@dataclass(frozen=True)
class Needs:
    """What a part must find in a `View`, known before anything runs.

    Attributes:
        back: how many layers back it reads attention; the engine holds that many.
        earliest: the first layer before which it works; 1 if it goes by the layer before.
        in_prompt: True if it works in prefills alone, as where it compares hidden states of visual
            tokens.
        tower: the layers of the vision tower that it looks at.
        counts: True if its order of the first n tokens depends on n. A search then ranks anew for
            every count.
    """

    back: int = 1
    earliest: int = 0
    in_prompt: bool = False
    tower: tuple[Layer, ...] = ()
    counts: bool = False

    @staticmethod
    def of(*parts: Part | None) -> Needs:
        """What several parts need together; None needs nothing."""
        return Needs.joined(*(part.needs for part in parts if part is not None))

    @staticmethod
    def joined(*needs: Needs) -> Needs:
        """The most that any of several asks for, and each layer of the tower once."""
        return Needs(
            back=max((one.back for one in needs), default=1),
            earliest=max((one.earliest for one in needs), default=0),
            in_prompt=any(one.in_prompt for one in needs),
            tower=tuple(dict.fromkeys(layer for one in needs for layer in one.tower)),
            counts=any(one.counts for one in needs),
        )


class Part(ABC):  # noqa: B024 - what must be written differs from kind to kind
    """What scores, schedules and merges have in common, and whatever they are made of."""

    @property
    def own(self) -> Needs:
        """What this part needs by itself, without the parts that it is made of."""
        return Needs()

    @property
    def needs(self) -> Needs:
        """What this part and all that it is made of need."""
        return Needs.joined(self.own, *(part.needs for part in self.made_of()))

    def notice(self, view: View) -> None:  # noqa: B027 - a default that does nothing, not a duty
        """Remembers something of this view, in `view.notes`.

        It is called for every view on which the method is consulted, also where nothing is dropped.
        Parts of this one have already been called; see `take_notice`.
        """

    def notices(self, layer: int, step: int) -> bool:
        """Whether the part must see the view before `layer` at `step`.

        It then sees it even if the schedule does not act there.
        """
        return False

    def made_of(self) -> Iterator[Part]:
        """The parts that this one is made of.

        They are the values of its attributes, and the members of tuples there.
        """
        for value in vars(self).values():
            for member in value if isinstance(value, tuple) else (value,):
                if isinstance(member, Part):
                    yield member

    def take_notice(self, view: View) -> None:
        """Calls `notice`, first of all parts, then of this one."""
        for part in self.made_of():
            part.take_notice(view)
        self.notice(view)

    def takes_notice(self, layer: int, step: int) -> bool:
        """Whether `notices` holds for this part or for one that it is made of."""
        return any(part.notices(layer, step) for part in self.watching())

    def watching(self) -> Iterator[Part]:
        """This part and those that it is made of, as far as they override `notices`."""
        if type(self).notices is not Part.notices:
            yield self
        for part in self.made_of():
            yield from part.watching()


class Score(Part):
    """Which tokens matter."""

    @abstractmethod
    def __call__(self, view: View, counts: Int[Tensor, B]) -> Float[Tensor, "B N"]:
        """Scores of the visual tokens alive, higher = keep.

        Of equal scores the earlier token is kept.

        Args:
            view: the state before the layer.
            counts: tokens that are to stay of each sample. Most scores do not look at it; one that
                does says so by `Needs.counts`.

        Returns:
            A score for each entry of `view.visual` (B N); what fills have is of no account.
        """


class Schedule(Part):
    """How many tokens stay."""

    @abstractmethod
    def __call__(self, view: View) -> Int[Tensor, B]:
        """Visual tokens to keep of each sample (B); more than are alive means all.

        Args:
            view: the state before the layer.
        """

    def acts(self, layer: int, step: int) -> bool | None:
        """Whether tokens may leave before `layer` at `step`.

        The engine spends nothing where none may.

        Returns:
            None if that cannot be told beforehand; the schedule is then asked every time. By
            default what the schedules say that this one is made of, and None if there are none.
        """
        told = [inner.acts(layer, step) for inner in self._inner()] or [None]
        return True if True in told else None if None in told else False

    def check(self, layers: int, family: str = "") -> None:
        """Refuses a model that the schedule does not fit.

        Args:
            layers: depth of the decoder.
            family: the model's `model_type`; "" if it is not known.

        Raises:
            ValueError: the decoder is too shallow, or the schedule is for another model.
        """
        for inner in self._inner():
            inner.check(layers, family)

    def flops(self, layer: int) -> float:
        """FLOPs of one decision before `layer`, for one sample.

        Rows of attention are not among them: the engine counts those.
        """
        return sum((inner.flops(layer) for inner in self._inner()), 0.0)

    def plan(self, total: int, layers: int) -> Sequence[int | float] | None:
        """What a prefill keeps before each layer, without a model.

        Args:
            total: visual tokens that a sample starts with.
            layers: depth of the decoder.

        Returns:
            For each layer a number of tokens (int; `total` where none leaves), or a share of those
            that are left there (float). None if that depends on the input.
        """
        return None

    def _inner(self) -> list[Schedule]:
        return [part for part in self.made_of() if isinstance(part, Schedule)]


class Merge(Part):
    """What becomes of the dropped."""

    @abstractmethod
    def __call__(
        self, view: View, keep: Bool[Tensor, "B N"], counts: Int[Tensor, B]
    ) -> Float[Tensor, "B N D"]:
        """New hidden states of the kept (B N D); what is not kept is not read.

        Args:
            view: the state before the layer.
            keep: which entries of `view.visual` stay. A prompt's last token stays, even if its
                score says otherwise.
            counts: tokens that the schedule wanted to stay of each sample.
        """

    @property
    def follows(self) -> Score | None:
        """The score from whose findings the merge goes on, if it works with no other."""
        return None

    @property
    def clusters(self) -> bool:
        """Whether every dropped token goes into one kept token, so that `owners` can tell which."""
        return False

    def owners(
        self, view: View, keep: Bool[Tensor, "B N"], counts: Int[Tensor, B]
    ) -> Int[Tensor, "B N"]:
        """For each entry of `view.visual` the kept one that it goes into: itself if it stays, -1 if
        none.

        Args:
            view: the state before the layer.
            keep: which entries stay.
            counts: tokens that the schedule wanted to stay of each sample.
        """
        raise NotImplementedError(f"{type(self).__name__} has no clusters")


@dataclass(frozen=True)
class Weigh(Part):
    """What a kept token weighs: for how many tokens it speaks.

    Attributes:
        strength: what the logarithm of that number is multiplied with; 1 is as if the token were
            there so many times.

    Raises:
        ValueError: a strength below 0, or none.
    """

    strength: float = 1.0
    of_merge: ClassVar[bool] = False
    """Whether it goes by the clusters of the method's merge, and so needs a merge that has them."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise ValueError(f"strength={self.strength}; expected a number, 0 or more; 1 is log(n)")

    @abstractmethod
    def owners(self, at: AtCut) -> Int[Tensor, "B N"]:
        """Whom each token joins: itself if it stays, -1 if nobody."""

    def numbers(self, at: AtCut, owner: Int[Tensor, "B N"]) -> Float[Tensor, "B N"]:
        """For how many tokens each that stays speaks from now on; other entries are not read."""
        return at.summed(owner)


PlainScore = Callable[[View], Tensor]
PlainSchedule = Callable[[View], Tensor]
PlainMerge = Callable[[View, Tensor], Tensor]
F = TypeVar("F", bound=Callable[..., Tensor])


@dataclass(frozen=True)
class ScoreOf(Score):
    """A plain function of a view as a score."""

    function: PlainScore

    def __call__(self, view: View, counts: Int[Tensor, B]) -> Tensor:
        """What the function gives; the method checks its shape."""
        return self.function(view)


@dataclass(frozen=True)
class ScheduleOf(Schedule):
    """A plain function of a view as a schedule, which may act anywhere."""

    function: PlainSchedule

    def __call__(self, view: View) -> Tensor:
        """What the function gives; the method checks its shape."""
        return self.function(view)


@dataclass(frozen=True)
class MergeOf(Merge):
    """A plain function of a view and the kept set as a merge."""

    function: PlainMerge

    def __call__(self, view: View, keep: Bool[Tensor, "B N"], counts: Int[Tensor, B]) -> Tensor:
        """What the function gives."""
        return self.function(view, keep)


def as_score(given: Score | PlainScore) -> Score:
    """`given`, wrapped if it is a plain callable; see `_plain` for what is refused."""
    return given if isinstance(given, Score) else ScoreOf(_plain(given, Score))


def as_schedule(given: Schedule | PlainSchedule) -> Schedule:
    """`given`, wrapped if it is a plain callable; see `_plain` for what is refused."""
    return given if isinstance(given, Schedule) else ScheduleOf(_plain(given, Schedule))


def as_merge(given: Merge | PlainMerge | None) -> Merge | None:
    """`given`, wrapped if it is a plain callable; see `_plain` for what is refused."""
    return given if given is None or isinstance(given, Merge) else MergeOf(_plain(given, Merge))


def _plain(given: F, kind: type[Part]) -> F:
    """`given`, if it is a callable that promises nothing more than to be called.

    What a plain callable has beside is not looked at. If it has something of the contract's, such
    as `acts`, it was meant to be looked at: that is refused, since leaving it out would change
    results in silence.

    Raises:
        TypeError: it cannot be called, it is another kind of part, or it has an attribute of the
            contract's.
    """
    if isinstance(given, Part) or not callable(given):
        raise TypeError(
            f"got {given!r} as a {kind.__name__.lower()}; expected a foveate.{kind.__name__}, or a plain function"
        )
    known = {*vars(kind), *vars(Part), *Needs.__dataclass_fields__}
    more = sorted(name for name in known if not name.startswith("_") and name in dir(given))
    if more:
        raise TypeError(
            f"{type(given).__name__} has {', '.join(more)}, which is looked for in a foveate.{kind.__name__} alone; "
            f"make it a subclass of foveate.{kind.__name__}, with layers and the like in `own = foveate.Needs(...)`"
        )
    return given
