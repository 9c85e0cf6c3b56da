"""DyRate: learns how many to keep, step by step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from ...artefacts.predictors import Card, from_pretrained
from ...core.contract import Schedule, Score
from ...core.features import shares_by_type
from ...core.knobs import checked
from ...core.method import MergeKind, Method, WeighKind
from ...core.predictor import RatePredictor
from ...core.schedules import ByStep, check_layer
from ...core.scores import RANKINGS, LastQuery, Ranking
from ...core.view import View
from .sparing import Sparing

Semantics = Literal["cached", "recompute"]
Protect = Literal["nothing", "unseen"]
Adapt = Literal["input", "step"]


@dataclass(frozen=True)
class LearnedRate(Schedule):
    """The schedule: the predictor's likeliest rate.

    The rate is of the visual tokens that each sample started with.

    Attributes:
        predictor: from attention shares to a rate.
        layer: decides before it.
        layers: depth that the predictor was trained for, or None for any.
        every: decides at step 0 and then at every `every`-th.
        semantics: see `dyrate`.
        deeper: see `dyrate`.
        decode: see `dyrate`.
    """

    predictor: RatePredictor
    layer: int
    layers: int | None = None
    every: int = 1
    semantics: Semantics = "cached"
    deeper: float = 0.0
    decode: bool = True

    def __post_init__(self) -> None:
        check_layer(self.layer)
        if self.every < 1:
            raise ValueError(f"every={self.every}; expected 1 or more")
        if self.semantics not in ("cached", "recompute"):
            raise ValueError(f"semantics={self.semantics!r}; expected cached or recompute")
        if not 0 <= self.deeper <= 1:
            raise ValueError(
                f"deeper={self.deeper}; expected a further rate at the last layer, in [0, 1]"
            )

    def flops(self, layer: int) -> float:
        """Of one decision before `layer` for one sample.

        Deeper layers only look up what was chosen.
        """
        return 2.0 * self.predictor.linear.weight.numel() if layer == self.layer else 0.0

    def acts(self, layer: int, step: int) -> bool:
        """Before its layer, and with `deeper` before those above it, at every `every`-th step."""
        here = layer == self.layer or (self.deeper > 0 and layer > self.layer)
        return here and step % self.every == 0 and (self.decode or step == 0)

    def check(self, layers: int, family: str = "") -> None:
        """Raises ValueError if the decoder is not one that the predictor can be for."""
        if self.layer >= layers:
            raise ValueError(
                f"dyrate decides before layer {self.layer}, but the model has layers 0 to {layers - 1}"
            )
        if self.layers not in (None, layers):
            raise ValueError(
                f"the predictor was trained for a decoder of {self.layers} layers, but this model has {layers}; "
                "train one for it: foveate train dyrate --model ..."
            )

    @torch.no_grad()
    def __call__(self, view: View) -> Int[Tensor, B]:
        """Counts to keep."""
        self._check_semantics(view)
        if view.layer > self.layer:
            further = self.deeper * (view.layer - self.layer) / (view.layers - 1 - self.layer)
            left = (
                1.0 - view.note(self._key)[:, 0].to(view.total.device).double() - further
            ).clamp(min=0.0)
            return (view.total.double() * left + 1e-6).floor().long()
        choice = self.predictor.to(view.hidden.device)(shares_by_type(view)).argmax(-1)
        if self.deeper:  # a note has a place per column; a rate is the same in all of a sample's
            chosen = torch.tensor(self.predictor.rates, device=choice.device, dtype=torch.float32)[
                choice
            ]
            view.notes[self._key] = chosen[:, None].expand(view.tokens.kind.shape)
        return self.predictor.keep(view.total).gather(1, choice[:, None].to(view.total.device))[
            :, 0
        ]

    @property
    def _key(self) -> str:
        return f"rate chosen before layer {self.layer}"

    def _check_semantics(self, view: View) -> None:
        """Raises ValueError if the cache is there and must not be, or the reverse."""
        if view.cached != (self.semantics == "cached"):
            raise ValueError(
                "dyrate with semantics='cached' was run without a KV cache, where nothing is evicted and every step "
                "prunes the whole prompt anew; use generate(use_cache=True), or semantics='recompute' if that is meant"
                if self.semantics == "cached"
                else "dyrate with semantics='recompute' prunes the whole prompt anew at every step, which needs "
                "generate(use_cache=False); with a cache, use semantics='cached'"
            )


@checked
def dyrate(
    predictor: str | RatePredictor, layer: int | None = None, ranking: Ranking | None = None,
    semantics: Semantics = "cached", every: int = 1, adapt: Adapt = "input", deeper: float = 0.0,
    decode: bool | None = None, protect: Protect | None = None, weigh: WeighKind | None = None,
    merge: MergeKind | None = None, strength: float | None = None, place: float | None = None,
    cutoff: float | None = None,
) -> Method:  # fmt: skip
    """At the prefill and before every decode step, a linear predictor picks how many visual tokens
    stay.

    Paper: "Dynamic Token Reduction during Generation for Vision Language Models", Liang et al.,
    arXiv 2501.14204, Section III. Features: per head, the share of attention that the newest token
    gives to system, image, instruction and response (III-B); rates r_k = (k-1)/K (eq. 1); the
    tokens that FastV's score ranks last go.

    Where: while the answer grows; each step.

    Deviations: eq. 3's mask keeps nothing at rate 0 as printed; here rate 0 keeps all. The paper
    does not say whether a later step can have dropped tokens back: with ``semantics="cached"``
    their keys and values have left the cache and kept sets only shrink; with
    ``semantics="recompute"`` there is no cache and every step prunes the whole prompt anew, as the
    paper's FLOPs column implies. Before layer 0 the features are what layer 0 will pay; its keys
    are projected for this alone. Original positions are kept. Several prune layers are several
    methods.

    Args:
        predictor: the name of a bundled one, a folder, a hub id, or a `RatePredictor` (then `layer`
            must be given).
        layer: decides before it, from the attention of the one before; by default as trained.
        ranking: which tokens go first, by default as trained; "last" is the paper's.
        semantics: "cached" or "recompute".
        every: decide only at every `every`-th step; the prefill is step 0.
        adapt: "input", or the control "step": what the predictor kept at each step on average,
            whatever the input.
        deeper: a further rate to drop above `layer`, growing linearly to this at the last (DP; form
            not in the paper).
        decode: whether to decide before decode steps too, or in the prefill alone; by default as
            trained.
        protect: "unseen": tokens that the answer has looked at leave the cache before those it has
            not (`methods.dyrate.sparing.Sparing`); or "nothing"; by default as trained.
        weigh: what a kept token weighs, as `Method.weighted` has it; by default as trained. "none"
            weighs all alike.
        merge: "mean" or "none"; by default as trained.
        strength: of weights; by default as trained.
        place: of weigh "mixed"; by default as trained.
        cutoff: of merge "mean"; by default as trained.

    Raises:
        ValueError: no such predictor, a knob out of range; when run: another model's predictor, or
            a wrong cache.
    """
    loaded, card = from_pretrained(predictor) if isinstance(predictor, str) else (predictor, None)
    told = _told(card, layer, ranking, decode, protect)
    plain = _method(
        loaded,
        told,
        f"dyrate:predictor={predictor if card else 'given'}",
        semantics,
        every,
        adapt,
        deeper,
    )
    return told.weighting.said(
        plain, weigh=weigh, merge=merge, strength=strength, place=place, cutoff=cutoff
    )


def _told(
    card: Card | None,
    layer: int | None,
    ranking: Ranking | None,
    decode: bool | None,
    protect: Protect | None,
) -> Card:
    """The card with what is said instead.

    Of a predictor without a card, one that holds for any model.
    """
    if card is None and layer is None:
        raise ValueError(
            "layer=None; a predictor that comes without a card does not say before which layer it decides"
        )
    found = card or Card("any", 0, 0, 0, (), True, "last", 1.0)
    return replace(
        found,
        layer=found.layer if layer is None else layer,
        ranking=ranking or found.ranking,
        decode=found.decode if decode is None else decode,
        protect=protect or found.protect,
    )


def _method(
    loaded: RatePredictor,
    told: Card,
    name: str,
    semantics: Semantics,
    every: int,
    adapt: Adapt,
    deeper: float,
) -> Method:
    spared = told.protect != "nothing"
    if semantics == "recompute" and spared:
        raise ValueError(
            f"protect={told.protect!r} is for the cache; with semantics='recompute' no token is ever lost"
        )
    if semantics == "recompute" and not told.decode:
        raise ValueError(
            "decode=False decides in the prefill alone; with semantics='recompute' every later step would run all "
            "tokens again; give decode=True, or semantics='cached'"
        )
    score = ranked(told.ranking, told.protect, told.layer)
    name += f",layer={told.layer},ranking={told.ranking}"
    name += ("" if told.decode else ",decode=false") + (
        f",protect={told.protect}" if spared else ""
    )
    if adapt == "step":
        means = _mean_kept(told, semantics, every, deeper)
        return Method(
            score,
            ByStep(told.layer, means if told.decode else means[:1]),
            name=f"{name},adapt=step",
        )
    name += ("" if semantics == "cached" else ",semantics=recompute") + (
        f",deeper={deeper:g}" if deeper else ""
    )
    rate = LearnedRate(
        loaded, told.layer, told.layers or None, every, semantics, deeper, told.decode
    )
    return Method(score, rate, name=name)


def ranked(ranking: str, protect: str, layer: int) -> Score:
    """The score of a ranking before `layer`.

    Raises:
        ValueError: no such ranking, nothing of the name to protect, or a ranking that is not
            possible there.
    """
    if ranking not in RANKINGS:
        raise ValueError(f"unknown ranking {ranking!r}; expected one of {', '.join(RANKINGS)}")
    if protect not in get_args(Protect):
        raise ValueError(f"protect={protect!r}; expected one of {', '.join(get_args(Protect))}")
    base = RANKINGS[ranking]
    if layer < base.needs.earliest:
        free = [name for name, score in RANKINGS.items() if not score.needs.earliest]
        raise ValueError(
            f"the ranking {ranking} looks at the attention of the layer before, and layer {layer} has none; rank by "
            f"{' or '.join(free)}, or decide before a later layer"
        )
    return base if protect == "nothing" else Sparing(base, LastQuery(back=min(1, layer)))


def _mean_kept(card: Card, semantics: Semantics, every: int, deeper: float) -> tuple[float, ...]:
    """What the predictor kept at each step of its held-out data, on average."""
    means = card.training.get("held out", {}).get("kept_by_step")
    if not means or semantics != "cached" or every != 1 or deeper:
        raise ValueError(
            "adapt='step' takes what a stored predictor kept at each step of its held-out data; it needs a predictor "
            "that `foveate train dyrate` stored, semantics='cached', every=1 and no deeper"
        )
    return tuple(float(share) for share in means)
