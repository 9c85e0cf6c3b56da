"""A method: a score, a schedule, and what becomes of the rest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .contract import (
    Merge,
    Needs,
    Part,
    PlainMerge,
    PlainSchedule,
    PlainScore,
    Schedule,
    Score,
    Weigh,
    as_merge,
    as_schedule,
    as_score,
)
from .knobs import checked
from .selection import top, top_per_image
from .view import View
from .weighing import CUTOFF, PLACE, AtCut, Cell, Clusters, Mean, Nearest, Uniform, owners

WeighKind = Literal["own", "none", "nearest", "cell", "mixed", "uniform", "clusters"]
MergeKind = Literal["own", "mean", "none"]
SOON = 33  # steps looked at to tell whether a schedule ever acts while decoding


class Selection(NamedTuple):
    """What a decision came to.

    Attributes:
        keep: which entries of `view.visual` stay.
        counts: tokens that are to stay of each sample.
    """

    keep: Bool[Tensor, "B N"]
    counts: Int[Tensor, B]


@dataclass(frozen=True, init=False)
class Method:
    """Which x how many (x what becomes of the rest). Compose, never override.

    Attributes:
        score: which tokens matter: a `Score`, or a plain function of a view.
        schedule: how many stay: a `Schedule`, or a plain function of a view.
        merge: new hidden states of the kept: a `Merge`, or a plain function of a view and the kept
            set. None lets the dropped go.
        weigh: what a kept token weighs: for how many tokens it speaks in attention. None weighs all
            alike, as published methods do; the number of a token that leaves is then lost.
        within: "sample" ranks all visual tokens of a sample together; "image" gives every image its
            share.
        name: for traces and tables.

    Raises:
        TypeError: a part is neither of its class nor a plain function.
        ValueError: `within` is neither of the two; the merge goes on from what another score finds;
            or weights go by the clusters of a merge that has none.
    """

    score: Score
    schedule: Schedule
    merge: Merge | None
    weigh: Weigh | None
    within: Literal["sample", "image"]
    name: str

    def __init__(
        self,
        score: Score | PlainScore,
        schedule: Schedule | PlainSchedule,
        merge: Merge | PlainMerge | None = None,
        within: Literal["sample", "image"] = "sample",
        name: str = "method",
        weigh: Weigh | None = None,
    ) -> None:
        if within not in ("sample", "image"):
            raise ValueError(f"within={within!r}; expected sample or image")
        typed = {
            "score": as_score(score),
            "schedule": as_schedule(schedule),
            "merge": as_merge(merge),
            "weigh": weigh,
        }
        if not isinstance(weigh, Weigh | None):
            raise TypeError(f"got {weigh!r} as weigh; expected a foveate.Weigh, or None")
        for key, value in {**typed, "within": within, "name": name}.items():
            object.__setattr__(self, key, value)
        found = None if self.merge is None else self.merge.follows
        if found is not None and found != self.score:
            raise ValueError(
                f"the merge goes on from what {found} found, but the score is {self.score}; use both"
            )
        if self.weigh and self.weigh.of_merge and not (self.merge and self.merge.clusters):
            raise ValueError(
                f"{name} has no merge that puts every dropped token into one kept token, so there are no clusters to "
                "weigh; expected weigh=nearest, or a method that merges, such as tome"
            )

    @property
    def needs(self) -> Needs:
        """What score, schedule and merge need together."""
        return Needs.of(self.score, self.schedule, self.merge, self.weigh)

    def drops(self, layer: int, step: int) -> bool:
        """Whether the method may drop tokens before `layer` at `step`; decided without tensors."""
        return self.schedule.acts(layer, step) is not False

    def acts(self, layer: int, step: int) -> bool:
        """Whether the method is to be consulted before `layer` at `step`: it may drop tokens, or
        takes notice.
        """
        return self.drops(layer, step) or any(part.notices(layer, step) for part in self._watching)

    def drops_later(self, layers: int) -> bool:
        """Whether the method may drop tokens in decode steps of a model of so many layers."""
        return any(self.drops(layer, step) for layer in range(layers) for step in range(1, SOON))

    def decides_later(self, layers: int) -> bool:
        """Whether the method is to be consulted in decode steps of a model of so many layers."""
        return any(self.acts(layer, step) for layer in range(layers) for step in range(1, SOON))

    @cached_property
    def _watching(self) -> tuple[Part, ...]:
        """Found once, since `acts` is called before every layer of every step."""
        return (*self.score.watching(), *self.schedule.watching())

    def check(self, layers: int, family: str = "") -> None:
        """Raises ValueError if the schedule does not fit `layers` layers or a model of this family,
        or the score.
        """
        try:
            self.schedule.check(layers, family)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        self.check_parts(layers)

    def check_parts(self, layers: int = 128) -> None:
        """Raises ValueError if the schedule acts where the score cannot rank, as far as the
        schedule tells.
        """
        acts = self.schedule.acts
        needs = self.score.needs
        first = min(layers, needs.earliest)
        for layer in range(first):
            if any(acts(layer, step) is True for step in range(SOON)):
                raise ValueError(
                    f"{self.name}: its schedule acts before layer {layer}, and layer {layer} has no layer before it "
                    f"whose attention could rank tokens; let it act at layer {first} or later, or take another score"
                )
        late = any(acts(layer, step) is True for layer in range(layers) for step in range(1, SOON))
        if late and needs.in_prompt:
            raise ValueError(
                f"{self.name}: its schedule drops tokens while decoding, when its score has no states of the prompt "
                "to rank by; take a score of attention, such as last, or a schedule that acts in the prefill alone"
            )

    def select(self, view: View) -> Selection | None:
        """Which of `view.visual` stay, and how many that is; None if all do.

        Raises:
            ValueError: the schedule or the score returned another shape than it must.
        """
        alive = view.alive
        for part in (self.score, self.schedule):
            part.take_notice(view)
        if not self.drops(view.layer, view.step):
            return None
        counts = self.schedule(view)
        if counts.shape != alive.shape:
            raise ValueError(
                f"the schedule of {self.name} gave shape {tuple(counts.shape)}, expected {tuple(alive.shape)}"
            )
        if counts.is_floating_point():
            raise ValueError(
                f"the schedule of {self.name} gave {counts.dtype}; expected whole numbers of tokens"
            )
        counts = counts.to(alive).clamp(min=0).minimum(alive)
        same, some = torch.stack([(counts == alive).all(), counts.any()]).tolist()
        if same:
            return None
        if not some:
            return Selection(torch.zeros_like(view.mask), counts)
        scores = self.score(view, counts)
        if scores.shape != view.visual.shape:
            raise ValueError(
                f"the score of {self.name} gave shape {tuple(scores.shape)}, expected {tuple(view.visual.shape)}"
            )
        if self.within == "sample":
            return Selection(top(scores, view.mask, counts), counts)
        image = view.tokens.image.gather(1, view.visual.clamp(min=0))
        return Selection(top_per_image(scores, view.mask, counts, image), counts)

    @checked
    def weighted(
        self,
        weigh: WeighKind = "nearest",
        merge: MergeKind = "mean",
        strength: float = 1.0,
        place: float | None = None,
        cutoff: float | None = None,
    ) -> Method:
        """This method, with kept tokens that speak for the dropped (see `core.weighing`).

        Args:
            weigh: whom a dropped token joins: the kept token "nearest" to it by hidden state, by
                "cell" in the picture, "mixed" by both, or by the "clusters" of the method's own
                merge; "uniform" is a control, which gives all kept tokens of an image one number;
                "none" weighs all alike, as most published methods do; "own" weighs as the method
                does by itself.
            merge: "mean" averages the kept with what joined them, "own" merges as the method does
                by itself, "none" lets states be.
            strength: what log(n) is multiplied with.
            place: of "mixed": how much nearness in the picture counts beside the cosine.
            cutoff: of "mean": the cosine below which a token is not averaged.

        Raises:
            ValueError: a kind that is not known, a number out of range or without its kind, or
                clusters of a method that has none.
        """
        if weigh not in get_args(WeighKind):
            raise ValueError(f"weigh={weigh!r}; expected one of {', '.join(get_args(WeighKind))}")
        if merge not in get_args(MergeKind):
            raise ValueError(f"merge={merge!r}; expected one of {', '.join(get_args(MergeKind))}")
        if place is not None and weigh != "mixed":
            raise ValueError(f"place={place} goes with weigh=mixed; got weigh={weigh}")
        if cutoff is not None and merge != "mean":
            raise ValueError(f"cutoff={cutoff} goes with merge=mean; got merge={merge}")
        if strength != 1.0 and weigh in ("none", "own"):
            raise ValueError(
                f"strength={strength:g} goes with a kind of weights; got weigh={weigh}"
            )
        if weigh == "clusters" and merge != "own":
            raise ValueError(
                f"weigh=clusters goes by what the method itself merges; got merge={merge}, expected merge=own"
            )
        kinds: dict[str, Weigh | None] = {
            "own": self.weigh,
            "none": None,
            "nearest": Nearest(strength),
            "cell": Cell(strength),
            "mixed": Nearest(strength, PLACE if place is None else place),
            "uniform": Uniform(strength),
            "clusters": Clusters(strength),
        }
        chosen = kinds[weigh]
        joins = chosen if isinstance(chosen, Nearest | Cell) else Nearest()
        merges = {
            "own": self.merge,
            "mean": Mean(joins, CUTOFF if cutoff is None else cutoff),
            "none": None,
        }
        said = {
            "weigh": "" if weigh == "own" else weigh,
            "merge": "" if merge == "own" else merge,
            "strength": "" if strength == 1.0 else f"{strength:g}",
            "place": "" if place is None else f"{place:g}",
            "cutoff": "" if cutoff is None else f"{cutoff:g}",
        }
        knobs = ",".join(f"{key}={value}" for key, value in said.items() if value)
        if not knobs:
            return self
        name = f"{self.name}{',' if ':' in self.name or '=' in self.name else ':'}{knobs}"
        return Method(self.score, self.schedule, merges[merge], self.within, name, chosen)

    def named(self, name: str) -> Method:
        """This method under another name."""
        return Method(self.score, self.schedule, self.merge, self.within, name, self.weigh)

    def numbers(
        self, weigh: Weigh, view: View, keep: Bool[Tensor, "B N"], counts: Int[Tensor, B]
    ) -> Float[Tensor, "B N"]:
        """For how many tokens each kept one speaks from this cut on.

        Args:
            weigh: the method's own.
            view: the state before the layer.
            keep: which of `view.visual` stay.
            counts: as `Selection` has them.

        Returns:
            Numbers of those that stay and run now. Entries of others, as of earlier turns' images,
            are not to be read.
        """
        at = AtCut.of_view(view, keep)
        if weigh.of_merge and self.merge is not None:
            at = replace(at, into=self.merge.owners(view, keep, counts))
            return weigh.numbers(at, weigh.owners(at))
        return weigh.numbers(at, owners(weigh, view, keep))
