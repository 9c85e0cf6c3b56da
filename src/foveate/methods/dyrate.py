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
from ..core.scores import RANKINGS, Ranking
from ..core.view import View
from ..predictors.store import from_pretrained

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
) -> Method:
    """At the prefill and before every decode step, a linear predictor picks how many visual tokens stay.

    Paper: "Dynamic Token Reduction during Generation for Vision Language Models", Liang et al., arXiv 2501.14204,
    Section III. Features: per head, the share of attention that the newest token gives to system, image, instruction
    and response (III-B); rates r_k = (k-1)/K (eq. 1); the tokens that FastV's score ranks last go.

    Deviations: eq. 3's mask keeps nothing at rate 0 as printed; here rate 0 keeps all. The paper does not say what
    happens to tokens that a later step would want back: with ``semantics="cached"`` they are gone, kept sets only
    shrink, and keys and values leave the cache; with ``semantics="recompute"`` there is no cache, and every step prunes
    the whole prompt anew, which is what the paper's FLOPs column implies. The two are different methods in cost and
    quality; neither runs in the other's place. Original positions are kept. Several prune layers are several methods
    in one `apply`, with one predictor or with one each.

    Args:
        predictor: the name of a bundled one, a folder, a hub id, or a `RatePredictor` (then `layer` must be given).
        layer: decides before this layer, from the attention of the one before; by default as trained.
        ranking: which tokens go first, by default those that did in training; "last" is the paper's.
        semantics: "cached" or "recompute".
        every: decide only at every `every`-th step; the prefill is step 0.

    Raises:
        ValueError: no such predictor; a layer < 1; `every` < 1; an untrained predictor without a layer. At run time:
            a model of other depth or heads than the predictor's; a cache where there must be none, or the reverse.
    """
    if isinstance(predictor, str):
        loaded, card = from_pretrained(predictor)
        usual, where, depth, name = card.ranking, card.layer, card.layers, predictor
    else:
        loaded, usual, where, depth, name = predictor, "last", 0, None, "given"
    chosen = ranking or usual
    layer = where if layer is None else layer
    schedule = LearnedRate(loaded, layer, depth, every, semantics)
    extra = "" if semantics == "cached" else ",semantics=recompute"
    return Method(RANKINGS[chosen], schedule, name=f"dyrate:predictor={name},layer={layer},ranking={chosen}{extra}")
