"""FitPrune's recipe: how many tokens may leave at each layer, from attention statistics alone
(2409.10197).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.contract import Schedule
from ..core.method import Method
from ..core.view import View
from ..cost.flops import shapes
from ..engine.anatomy import anatomy_of
from ..engine.apply import apply
from ..engine.sizes import LayerShape
from ..methods.fitprune import SelfTimesCross

Received = dict[int, tuple[Tensor, Tensor]]  # by layer: (B) sums of self- and of cross-attention


@dataclass(frozen=True)
class FitPruneFit:
    """What was found.

    Attributes:
        keep: share of the visual tokens that each layer runs with, layer 0 first;
            `fitprune(keep=...)` takes it.
        tolerance: the share of attention given up, the paper's alpha.
        reduction: of the visual tokens' FLOPs, as `keep` has it.
        samples: how many it was measured on.
    """

    keep: tuple[float, ...]
    tolerance: float
    reduction: float
    samples: int


@dataclass(frozen=True)
class _Spare(Schedule):
    """Score and schedule of a trial: at every layer those leave that neither self- nor
    cross-attention would miss.

    Attributes:
        tolerance: alpha, the share of the unpruned model's attention to a layer's visual tokens
            that may be missed.
        sums: of the unpruned model.
        first: the first layer before which tokens leave.
    """

    tolerance: float
    sums: Received = field(hash=False)
    first: int

    def acts(self, layer: int, step: int) -> bool:
        """In a prefill, from the first layer on that may drop."""
        return step == 0 and layer >= self.first

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


def _fewest(
    received: Float[Tensor, "B N"], mask: Bool[Tensor, "B N"], needed: Float[Tensor, B]
) -> Bool[Tensor, "B N"]:
    """The tokens that receive least, as many as leave at least `needed` with the rest."""
    order = received.masked_fill(~mask, torch.inf).argsort(dim=1, stable=True)
    gone = (received * mask).gather(1, order).double().cumsum(1)
    total = (received * mask).double().sum(1, keepdim=True)
    may = (total - gone >= needed[:, None]) & mask.gather(1, order)
    return torch.zeros_like(mask).scatter(1, order, may.long().cumprod(1).bool())


class Recipe:
    """The paper's recipe on samples: what each layer keeps at a tolerance. One pass to begin with,
    one per question.

    With tolerance alpha, as many tokens leave at a layer as keep both the self- and the
    cross-attention to visual tokens within alpha of the unpruned model's, layer after layer on what
    the layers before have left; a layer's share is the mean over samples. So it is in the authors'
    code: maxima over heads, both sums apart, and what neither would miss leaves.

    Args:
        model: a supported model.
        batches: keyword arguments of the model, one sample or more each.
        first: the first layer before which tokens may leave, 1 or more.

    Raises:
        ValueError: no batches, a batch without an image, or `first` below 1.
    """

    def __init__(self, model: Any, batches: Iterable[dict[str, Tensor]], first: int = 1) -> None:
        self.model, self.batches, self.first = model, list(batches), first
        if not self.batches or any(batch.get("pixel_values") is None for batch in self.batches):
            raise ValueError(
                "got no batches, or one without pixel_values; give a few dozen samples with images"
            )
        if first < 1:
            raise ValueError(
                f"tokens may leave from layer {first} on; expected 1 or more: statistics need a layer"
            )
        depth = anatomy_of(model).depth
        self.sums = [_sums(model, batch, depth) for batch in self.batches]
        self.samples, self.total = 0, 0

    @torch.inference_mode()
    def keep(self, tolerance: float) -> tuple[float, ...]:
        """Share of the visual tokens that each layer runs with; 1 for layer 0."""
        kept: Tensor | None = None
        self.samples = self.total = 0
        for batch, received in zip(self.batches, self.sums, strict=True):
            spare = _Spare(tolerance, received, self.first)
            with apply(self.model, Method(spare.needed, spare)) as trace:
                self.model(**batch, use_cache=False)
            counts = torch.tensor(trace.prefill(), dtype=torch.float64, device="cpu").sum(1)
            kept = counts if kept is None else kept + counts
            self.total += int(trace.passes[0].total.sum())
            self.samples += len(trace.passes[0].total)
        return (
            () if kept is None else tuple(round(share, 6) for share in (kept / self.total).tolist())
        )


def fit_prune(
    model: Any,
    batches: Iterable[dict[str, Tensor]],
    *,
    reduction: float = 0.6,
    precision: float = 0.01,
) -> FitPruneFit:
    """Counts for `fitprune` that spare `reduction` of the FLOPs that visual tokens cost in the
    decoder.

    The tolerance of `Recipe` is found by bisection, so that the FLOPs are met; `foveate search
    --algorithm fitprune` is the same for any budget. Deviations: a token leaves before the next
    layer; FLOPs are the exact ones of this model's layers (the authors' code has LLaVA-1.5-7B's
    written in, and stops pruning a trial at the layer where the FLOPs are met); means are not cut
    to whole tokens.

    Args:
        model: a supported model.
        batches: keyword arguments of the model, one sample or more each, the same images in each
            sample.
        reduction: share of the FLOPs of the visual tokens to spare.
        precision: of alpha.

    Raises:
        ValueError: no batches, a batch without an image, a reduction outside (0, 1), or one that
            even alpha = 1, under which all leave after layer 0, does not reach.
    """
    if not 0 < reduction < 1:
        raise ValueError(f"reduction={reduction}; expected a share in (0, 1)")
    recipe = Recipe(model, batches)
    shape = shapes(model).layers

    def trial(tolerance: float) -> FitPruneFit:
        share = recipe.keep(tolerance)
        return FitPruneFit(
            share, tolerance, _spared(shape, share, recipe.total / recipe.samples), recipe.samples
        )

    low, high = 0.0, 1.0
    best = trial(high)
    if best.reduction < reduction:
        raise ValueError(
            f"dropping all after layer 0 spares {best.reduction:.2f} of the FLOPs, less than {reduction}"
        )
    while high - low > precision:
        middle = (low + high) / 2
        found = trial(middle)
        low, high = (low, middle) if found.reduction >= reduction else (middle, high)
        best = found if found.reduction >= reduction else best
    return best


def _spared(shape: Sequence[LayerShape], share: Sequence[float], tokens: float) -> float:
    """Of the FLOPs that so many visual tokens cost."""
    left = sum(layer.flops(tokens * k) for layer, k in zip(shape, share, strict=True))
    return 1 - left / sum(layer.flops(tokens) for layer in shape)


@torch.inference_mode()
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
