"""VisionZip: what the tower attends to; rest merged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.contract import Needs
from ..core.knobs import checked
from ..core.method import Method
from ..core.pictures import (
    ByImage,
    EachImage,
    Mix,
    MixImage,
    Picture,
    Rank,
    Share,
    allotted,
    nearest,
    shared_out,
)
from ..core.schedules import spelled


@dataclass(frozen=True)
class DominantContextual(Rank):
    """Ranks and mixes.

    `contextual` is the share of the kept tokens that stand for others; see `visionzip`.
    """

    contextual: float
    sums: bool

    own = Needs(tower=(None,))

    def targets(self, picture: Picture, count: int) -> Bool[Tensor, n]:
        """The contextual tokens: of those that are not dominant, evenly spaced ones."""
        context = min(Share(self.contextual).of(count), len(picture))
        order = picture.attention().argsort(descending=True, stable=True)
        rest = order[max(0, count - context) :].sort().values
        chosen = torch.zeros(len(picture), dtype=torch.bool, device=order.device)
        chosen[rest[:: max(1, len(rest) // max(1, context))][:context]] = True
        return chosen

    def __call__(self, picture: Picture, count: int) -> Float[Tensor, n]:
        """Dominant tokens by attention, then contextual ones, then the rest by attention."""
        attention = picture.attention()
        targets = self.targets(picture, count)
        order = attention.masked_fill(targets, -torch.inf).argsort(descending=True, stable=True)
        place = torch.empty_like(order).scatter(
            0, order, torch.arange(len(picture), device=order.device)
        )
        dominant = ~targets & (place < count - int(targets.sum()))
        return (
            dominant.float() * 2.0
            + targets.float()
            + attention / attention.max().clamp(min=1e-30) * ~targets / 2
        )


@dataclass(frozen=True)
class IntoContextual(Mix):
    """Each dropped token goes to the contextual token whose key is most like its own."""

    base: DominantContextual
    count: Share

    own = Needs(tower=(None,))

    def __call__(
        self, picture: Picture, stay: Bool[Tensor, n], counts: Int[Tensor, B]
    ) -> Float[Tensor, "n n"]:
        """Weights of the merge."""
        itself = torch.eye(len(picture), device=stay.device, dtype=torch.float32)
        targets = self._targets(picture, stay, counts)
        if not bool(targets.any()):
            return itself
        into = self.owners(picture, stay, counts)
        others = shared_out(into, (~stay).float())
        if self.base.sums:
            return itself + others
        return torch.where(targets[:, None], shared_out(into, (~stay | targets).float()), itself)

    clusters = True

    def owners(
        self, picture: Picture, stay: Bool[Tensor, n], counts: Int[Tensor, B]
    ) -> Int[Tensor, n]:
        """The contextual token most like each that is dropped; all others are their own."""

        def find() -> Tensor:
            targets = self._targets(picture, stay, counts)
            itself = torch.arange(len(picture), device=stay.device)
            if not bool(targets.any()):
                return itself
            keys = picture.keys()
            return torch.where(stay, itself, nearest(picture.cosines(keys, keys), targets))

        found: Tensor = picture.once(("contextual", *stay.tolist()), find)
        return found

    def _targets(
        self, picture: Picture, stay: Bool[Tensor, n], counts: Int[Tensor, B]
    ) -> Bool[Tensor, n]:
        """The contextual tokens, as far as they stay."""
        shares = picture.view.once(
            ("allotted", self.count), lambda: allotted(picture.view, self.count, counts)
        )
        return self.base.targets(picture, shares[picture.sample, picture.image]) & stay


@checked
def visionzip(
    layer: int = 0,
    keep: float | int = 0.25,
    contextual: float = 0.16,
    merging: Literal["mean", "sum"] = "mean",
) -> Method:
    """Before layer `layer`, keep the tokens the vision tower attends to, and merge the rest into
    evenly spaced ones.

    Paper: "VisionZip: Longer is Better but Not Necessary in Vision Language Models", Yang et al.,
    arXiv 2412.04467: dominant tokens by attention from [CLS], or from all where there is none; of
    the others, evenly spaced targets take in those most similar to them by key. Checked against the
    authors' code.

    Where: before the language model; layer 0.

    Deviations: tokens merge after the projector, not before it, and the [CLS] token, which stock
    models do not pass on, is not among the dominant. ``merging="sum"`` is the authors' code, which
    adds to a target the mean of what it takes in; the default averages a target with all that it
    takes in. Both read the layer whose output the model reads.

    Args:
        layer: the first layer that runs with fewer tokens; 0 is before the language model, as in
            the paper.
        keep: visual tokens kept of each image, a fraction (float) or a number (int), contextual
            ones included.
        contextual: share of the kept that is contextual; the paper has 10 of 64.
        merging: "mean" or "sum".

    Raises:
        ValueError: a negative layer, `keep` or `contextual` out of range, or another `merging`.
    """
    if merging not in ("mean", "sum"):
        raise ValueError(f"merging={merging!r}; expected mean or sum")
    count = Share(keep)
    base = DominantContextual(Share(float(contextual)).keep, merging == "sum")
    name = f"visionzip:layer={layer},keep={spelled(keep)},contextual={spelled(float(contextual))}"
    name += "" if merging == "mean" else ",merging=sum"
    return Method(
        ByImage(base, count),
        EachImage(count, layer),
        MixImage(IntoContextual(base, count)),
        name=name,
    )
