"""DyRate: a learned prune rate, chosen anew at every generation step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from ..core.features import shares_by_type
from ..core.method import Method
from ..core.predictor import RatePredictor
from ..core.schedules import ByStep, Schedule
from ..core.scores import RANKINGS, Ranking
from ..core.view import View
from ..predictors.store import Card, from_pretrained

Semantics = Literal["cached", "recompute"]


@dataclass(frozen=True)
class LearnedRate:
    """The schedule: the predictor's likeliest rate, of the visual tokens that each sample started with.

    Attributes:
        predictor: from attention shares to a rate.
        layer: decides before it; 1 or more.
        layers: depth that the predictor was trained for, or None for any.
        every: decides at step 0 and then at every `every`-th.
        semantics: see `dyrate`.
    """

    predictor: RatePredictor
    layer: int
    layers: int | None = None
    every: int = 1
    semantics: Semantics = "cached"

    def __post_init__(self) -> None:
        if self.layer < 1:
            raise ValueError(f"layer={self.layer}; expected 1 or more: features are the attention of the layer before")
        if self.every < 1:
            raise ValueError(f"every={self.every}; expected 1 or more")
        if self.semantics not in ("cached", "recompute"):
            raise ValueError(f"semantics={self.semantics!r}; expected cached or recompute")

    @property
    def flops(self) -> float:
        """Of one decision for one sample."""
        return 2.0 * self.predictor.linear.weight.numel()

    def acts(self, layer: int, step: int) -> bool:
        """Before its layer, at every `every`-th step."""
        return layer == self.layer and step % self.every == 0

    def check(self, layers: int) -> None:
        """Raises ValueError if the decoder is not one that the predictor can be for."""
        if self.layer >= layers:
            raise ValueError(f"dyrate decides before layer {self.layer}, but the model has layers 0 to {layers - 1}")
        if self.layers not in (None, layers):
            raise ValueError(
                f"the predictor was trained for a decoder of {self.layers} layers, but this model has {layers}; "
                "train one for it: foveate train dyrate --model ..."
            )

    @torch.no_grad()
    def __call__(self, view: View) -> Int[Tensor, B]:
        """Counts to keep."""
        if view.cached != (self.semantics == "cached"):
            raise ValueError(
                "dyrate with semantics='cached' was run without a KV cache, where nothing is evicted and every step "
                "prunes the whole prompt anew; use generate(use_cache=True), or semantics='recompute' if that is meant"
                if self.semantics == "cached"
                else "dyrate with semantics='recompute' prunes the whole prompt anew at every step, which needs "
                "generate(use_cache=False); with a cache, use semantics='cached'"
            )
        choice = self.predictor.to(view.hidden.device)(shares_by_type(view)).argmax(-1)
        return self.predictor.keep(view.total).gather(1, choice[:, None].to(view.total.device))[:, 0]


def dyrate(
    predictor: str | RatePredictor,
    layer: int | None = None,
    ranking: Ranking | None = None,
    semantics: Semantics = "cached",
    every: int = 1,
    adapt: Literal["input", "step"] = "input",
) -> Method:
    """At the prefill and before every decode step, a linear predictor picks how many visual tokens stay.

    Paper: "Dynamic Token Reduction during Generation for Vision Language Models", Liang et al., arXiv 2501.14204,
    Section III. Features: per head, the share of attention that the newest token gives to system, image, instruction
    and response (III-B); rates r_k = (k-1)/K (eq. 1); the tokens that FastV's score ranks last go.

    Deviations: eq. 3's mask keeps nothing at rate 0 as printed; here rate 0 keeps all. The paper does not say whether
    a later step can have dropped tokens back: with ``semantics="cached"`` their keys and values have left the cache and
    kept sets only shrink; with ``semantics="recompute"`` there is no cache and every step prunes the whole prompt anew,
    as the paper's FLOPs column implies. Neither runs in the other's place. Original positions are kept. Several prune
    layers are several methods in one `apply`, with one predictor or one each.

    Args:
        predictor: the name of a bundled one, a folder, a hub id, or a `RatePredictor` (then `layer` must be given).
        layer: decides before this layer, from the attention of the one before; by default as trained.
        ranking: which tokens go first, by default those that did in training; "last" is the paper's.
        semantics: "cached" or "recompute".
        every: decide only at every `every`-th step; the prefill is step 0.
        adapt: "input", or the control "step": what the predictor kept at each step on average, whatever the input.

    Raises:
        ValueError: no such predictor, or a knob out of range. At run time: a model of other depth or heads than the
            predictor's; a cache where there must be none, or the reverse.
    """
    loaded, card = from_pretrained(predictor) if isinstance(predictor, str) else (predictor, None)
    where = layer if layer is not None else card.layer if card else 0
    chosen = ranking or (card.ranking if card else "last")
    schedule: Schedule = LearnedRate(loaded, where, card.layers if card else None, every, semantics)
    name = f"dyrate:predictor={predictor if card else 'given'},layer={where},ranking={chosen}"
    name += "" if semantics == "cached" else ",semantics=recompute"
    if adapt == "step":
        schedule, name = ByStep(where, _mean_kept(card, semantics, every)), f"{name},adapt=step"
    return Method(RANKINGS[chosen], schedule, name=name)


def _mean_kept(card: Card | None, semantics: Semantics, every: int) -> tuple[float, ...]:
    """What the predictor kept at each step of its held-out data, on average."""
    means = card.training.get("held out", {}).get("kept_by_step") if card else None
    if not means or semantics != "cached" or every != 1:
        raise ValueError(
            "adapt='step' takes what a stored predictor kept at each step of its held-out data; it needs a predictor "
            "that `foveate train dyrate` stored, semantics='cached' and every=1"
        )
    return tuple(float(share) for share in means)
