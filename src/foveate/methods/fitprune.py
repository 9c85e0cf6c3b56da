"""FitPrune: some leave at every layer; fitted counts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.contract import Needs, Schedule, Score
from ..core.knobs import checked
from ..core.method import Method
from ..core.schedules import PerLayer, number_kept, spelled, tokens_kept
from ..core.scores import asking, packed, sum_over_rows
from ..core.view import View

# The authors' table for LLaVA-1.5-7B at 60 % fewer FLOPs: tokens of 576 that leave in layer 0, 1,
# ...
LEAVE = (
    14,
    33,
    89,
    36,
    36,
    20,
    55,
    21,
    18,
    4,
    7,
    5,
    2,
    5,
    7,
    4,
    26,
    5,
    11,
    24,
    4,
    18,
    2,
    1,
    0,
    0,
    1,
    0,
    1,
    0,
    0,
    0,
)


@dataclass(frozen=True)
class SelfTimesCross(Score):
    """Attention received from the visual tokens times that from the instruction.

    Both are read in the layer before.

    Of the heads the one that pays most counts, row by row; then the sum over rows.
    """

    own = Needs(earliest=1, in_prompt=True)

    def __call__(self, view: View, counts: Int[Tensor, B]) -> Float[Tensor, "B N"]:
        """Scores >= 0."""
        own, cross = self.parts(view)
        return own * cross

    def parts(self, view: View) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N"]]:
        """Received from visual tokens, and from the instruction; sums over rows."""
        visual = packed(torch.where(view.place() >= 0, view.visual, -1))
        own = sum_over_rows(view, visual, heads="max")
        return view.of_visual(own), view.of_visual(sum_over_rows(view, asking(view), heads="max"))


@dataclass(frozen=True)
class Published(Schedule):
    """The authors' table, read at the same depth of any decoder."""

    def acts(self, layer: int, step: int) -> bool:
        """In a prefill, before any layer but the first."""
        return step == 0 and layer > 0

    def __call__(self, view: View) -> Int[Tensor, B]:
        """Counts to keep."""
        return tokens_kept(view.total, self.share(view.layer, view.layers))

    def plan(self, total: int, layers: int) -> list[int]:
        """Each layer's share."""
        return [number_kept(total, self.share(layer, layers)) for layer in range(layers)]

    def share(self, layer: int, layers: int) -> float:
        """What the table leaves at the same share of the depth."""
        return 1.0 - sum(LEAVE[: layer * len(LEAVE) // layers]) / 576


@checked
def fitprune(keep: tuple[float, ...] | None = None) -> Method:
    """At every layer some tokens leave: those that neither visual tokens nor the instruction attend
    to.

    Paper: "Fit and Prune: Fast and Training-free Visual Token Pruning for Multi-modal Large
    Language Models", Ye et al., arXiv 2409.10197: self- and cross-attention of visual tokens,
    maximum over heads, multiplied; counts by the statistics recipe, which is
    `foveate.tune.fit_prune`, and `foveate search --algorithm fitprune` for any budget. Read in the
    abstract and in the authors' code.

    Where: inside the language model; each layer.

    Deviations: a token leaves before the next layer, not between a layer's attention and its MLP as
    in the authors' code, so that what leaves in layer l here is missing from layer l + 1 on.
    Without `keep` the counts are the authors' for LLaVA-1.5-7B at 60 % fewer FLOPs, as shares, read
    at the same relative depth; fit your own. The score asks for the attention rows of all visual
    tokens, at every layer: a cost that the fit does not see.

    Args:
        keep: for every layer the share of the tokens, like 1.0/0.8/0.5/0.5.

    Raises:
        ValueError: a keep out of range. When applied: not one for each layer.
    """
    if keep is not None and keep[0] != 1.0:
        raise ValueError(
            f"keep={keep}; expected 1.0 first: layer 0 runs with all tokens, for scores need a layer"
        )
    schedule: Schedule = Published() if keep is None else PerLayer(keep)
    name = "fitprune" + ("" if keep is None else f":keep={'/'.join(map(spelled, keep))}")
    return Method(SelfTimesCross(), schedule, name=name)
