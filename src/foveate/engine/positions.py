"""The position arguments of a layer, for the rows that are left after a drop."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from .attention.rows import take_rows


class Positions:
    """Gathers what layers are given as positions; layers may be given different ones, as in Gemma 3.

    Args:
        source: (B R), each row's place among the rows that the caller gave, or None while nothing was dropped.
        backend: transformers' name of the attention implementation.
    """

    def __init__(self, source: Int[Tensor, "B R"] | None = None, backend: str = "sdpa") -> None:
        self.source, self.flash = source, backend.startswith("flash")
        self.taken: dict[
            int, tuple[Tensor, Tensor]
        ] = {}  # by the caller's tensor, which is held so that its id stays

    def of(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What replaces a layer's `position_embeddings` and `position_ids`; nothing while nothing was dropped."""
        if self.source is None:
            return {}
        cos, sin = kwargs["position_embeddings"]
        found: dict[str, Any] = {"position_embeddings": (self._take(cos), self._take(sin))}
        if kwargs.get("position_ids") is not None:
            # gaps in them would make flash attention believe in packed sequences; rotations are in the embeddings
            found["position_ids"] = None if self.flash else self._take(kwargs["position_ids"])
        return found

    def _take(self, values: Tensor) -> Tensor:
        if id(values) not in self.taken and self.source is not None:
            if values.ndim == 3 and not values.is_floating_point():  # M-RoPE's (3 B T)
                rows = torch.stack([take_rows(plane, self.source) for plane in values])
            else:
                rows = take_rows(values, self.source)
            self.taken[id(values)] = (values, rows)
        return self.taken[id(values)][1]
