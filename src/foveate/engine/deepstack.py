"""DeepStack: features of shallower tower layers that are added to the visual rows after the first decoder layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class DeepStack:
    """The features that a decoder was to add itself; the engine adds them, to the rows that are left.

    Attributes:
        features: per layer after which they are added, (M D) for the M visual tokens of the batch in order.
        number: per column of the forward, its token's place among those M; -1 elsewhere.
    """

    features: Sequence[Float[Tensor, "M D"]]
    number: Int[Tensor, "B T"]

    @staticmethod
    def taken_from(kwargs: dict[str, Any]) -> tuple[DeepStack | None, dict[str, Any]]:
        """The features in a decoder's arguments, and the arguments without them."""
        features = kwargs.get("deepstack_visual_embeds")
        if features is None:
            return None, kwargs
        mask: Bool[Tensor, "B T"] = kwargs["visual_pos_masks"]
        number = torch.where(mask, mask.flatten().cumsum(0).view(mask.shape) - 1, -1)
        left = {**kwargs, "deepstack_visual_embeds": None, "visual_pos_masks": None}
        return DeepStack(list(features), number), left

    def added(
        self, hidden: Float[Tensor, "B R D"], after: int, rows: Int[Tensor, "B R"]
    ) -> Float[Tensor, "B R D"]:
        """`hidden` with the features of layer `after`; `rows` are places in the forward, -1 for fills."""
        if not 0 <= after < len(self.features) or not len(self.features[after]):
            return hidden
        features = self.features[after].to(hidden)
        rows = rows.to(self.number.device)
        number = torch.where(rows < 0, -1, self.number.gather(1, rows.clamp(min=0))).to(
            hidden.device
        )
        return torch.where((number >= 0)[..., None], hidden + features[number.clamp(min=0)], hidden)
