"""FitPrune's recipe: how many tokens may leave at each layer, from attention statistics alone (2409.10197)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.method import Method
from ..core.view import View
from ..engine.adapters import adapter_for, decoder_of
from ..engine.apply import apply
from ..measure.cost import LayerShape, shapes
from ..methods.fitprune import SelfTimesCross

Received = dict[int, tuple[Tensor, Tensor]]  # by layer: (B) sums of self- and of cross-attention


@dataclass(frozen=True)
class FitPruneFit:
    """What was found.

    Attributes:
        keep: share of the visual tokens that each layer runs with, layer 0 first; `fitprune(keep=...)` takes it.
        tolerance: the share of attention given up, the paper's alpha.
        reduction: of the visual tokens' FLOPs, as `keep` has it.
        samples: how many it was measured on.
    """

    keep: tuple[float, ...]
    tolerance: float
    reduction: float
    samples: int


@dataclass(frozen=True)
class _Spare:
    """Score and schedule of a trial: at every layer those leave that neither self- nor cross-attention would miss.

    Attributes:
        tolerance: alpha, the share of the unpruned model's attention to a layer's visual tokens that may be missed.
        sums: of the unpruned model.
    """

    tolerance: float
    sums: Received = field(hash=False)

    def acts(self, layer: int, step: int) -> bool:
        """In a prefill, before every layer but the first."""
        return step == 0 and layer > 0

    def __call__(self, view: View) -> Int[Tensor, B]:
        """Counts to keep."""
        return view.alive - self.spare(view).sum(1)

    def needed(self, view: View) -> Float[Tensor, "B N"]:
        """The score: 1 for what stays."""
        return (~self.spare(view)).float()

    def spare(self, view: View) -> Bool[Tensor, "B N"]:
        """What is missed by neither."""
        found: Tensor = view.once("spare", lambda: self._spare(view))
        return found

    def _spare(self, view: View) -> Tensor:
        parts = SelfTimesCross().parts(view)
        few = [
            _fewest(part, view.mask, total * (1 - self.tolerance))
            for part, total in zip(parts, self.sums[view.layer], strict=True)
        ]
        return few[0] & few[1]


def _fewest(received: Float[Tensor, "B N"], mask: Bool[Tensor, "B N"], needed: Float[Tensor, B]) -> Bool[Tensor, "B N"]:
    """The tokens that receive least, as many as leave at least `needed` with the rest."""
    order = received.masked_fill(~mask, torch.inf).argsort(dim=1, stable=True)
    gone = (received * mask).gather(1, order).double().cumsum(1)
    total = (received * mask).double().sum(1, keepdim=True)
    may = (total - gone >= needed[:, None]) & mask.gather(1, order)
    return torch.zeros_like(mask).scatter(1, order, may.long().cumprod(1).bool())


@torch.inference_mode()
def fit_prune(
    model: Any, batches: Iterable[dict[str, Tensor]], *, reduction: float = 0.6, precision: float = 0.01
) -> FitPruneFit:
    """Counts for `fitprune` that spare `reduction` of the FLOPs that visual tokens cost in the decoder.

    The paper's recipe: with tolerance alpha, as many tokens leave at a layer as keep both the self- and the cross-
    attention to visual tokens within alpha of the unpruned model's; alpha is found by bisection, so that the FLOPs are
    met; a layer's count is the mean over samples. Deviations: a token leaves before the next layer; FLOPs are the
    exact ones of this model's layers (the authors' code has LLaVA-1.5-7B's written in, and stops pruning a trial at
    the layer where the FLOPs are met); means are not cut to whole tokens.

    Args:
        model: a supported model.
        batches: keyword arguments of the model, one sample or more each, the same images in each sample.
        reduction: share of the FLOPs of the visual tokens to spare.
        precision: of alpha.

    Raises:
        ValueError: no batches, a batch without an image, a reduction outside (0, 1), or one that even alpha = 1, under
            which all leave after layer 0, does not reach.
    """
    known = list(batches)
    if not known or any(batch.get("pixel_values") is None for batch in known):
        raise ValueError("got no batches, or one without pixel_values; give a few dozen samples with images")
    if not 0 < reduction < 1:
        raise ValueError(f"reduction={reduction}; expected a share in (0, 1)")
    depth = len(decoder_of(adapter_for(model).body(model)).layers)
    shape = shapes(model).layers
    sums = [_sums(model, batch, depth) for batch in known]
    low, high = 0.0, 1.0
    best = _trial(model, known, sums, high, shape)
    if best.reduction < reduction:
        raise ValueError(f"dropping all after layer 0 spares {best.reduction:.2f} of the FLOPs, less than {reduction}")
    while high - low > precision:
        middle = (low + high) / 2
        found = _trial(model, known, sums, middle, shape)
        low, high = (low, middle) if found.reduction >= reduction else (middle, high)
        best = found if found.reduction >= reduction else best
    return best


def _sums(model: Any, batch: dict[str, Tensor], depth: int) -> Received:
    """What visual tokens receive in the unpruned model, in the layer before each."""
    found: Received = {}

    def watch(view: View) -> None:
        if 0 < view.layer < depth:
            own, cross = SelfTimesCross().parts(view)
            found[view.layer] = own.double().sum(1), cross.double().sum(1)

    with apply(model, watch=watch):
        model(**batch, use_cache=False)
    return found


def _trial(
    model: Any, batches: list[dict[str, Tensor]], sums: list[Received], tolerance: float, shape: tuple[LayerShape, ...]
) -> FitPruneFit:
    kept, total, samples = torch.zeros(len(shape), dtype=torch.float64), 0, 0
    for batch, received in zip(batches, sums, strict=True):
        spare = _Spare(tolerance, received)
        with apply(model, Method(spare.needed, spare)) as trace:
            model(**batch, use_cache=False)
        kept += torch.tensor(trace.prefill(), dtype=torch.float64).sum(1)
        total += int(trace.passes[0].total.sum())
        samples += len(trace.passes[0].total)
    share, mean = kept / total, total / samples
    whole = sum(layer.flops(mean) for layer in shape)
    left = sum(layer.flops(mean * k) for layer, k in zip(shape, share.tolist(), strict=True))
    return FitPruneFit(tuple(round(k, 6) for k in share.tolist()), tolerance, 1 - left / whole, samples)
