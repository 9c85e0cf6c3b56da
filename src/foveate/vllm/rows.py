"""Which rows of a step are whose: vLLM runs the tokens of all requests as one flat table."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..core.method import Method
from ..core.tokens import TokenMap, classify


@dataclass(eq=False)
class Request:
    """What is known of a request from its prefill to its end.

    Attributes:
        methods: that decide for it.
        tokens: what every column of its prompt is; None for one without pictures.
        total: visual tokens that it started with, (1).
        gone: for each layer, how many of its tokens the layer does not hold.
    """

    methods: tuple[Method, ...]
    tokens: TokenMap | None
    total: Int[Tensor, 1]
    gone: npt.NDArray[np.int64]

    @property
    def prompt(self) -> int:
        """Columns of the prompt."""
        return 0 if self.tokens is None else self.tokens.kind.shape[1]


def request_of(
    methods: tuple[Method, ...],
    visual: Bool[Tensor, T] | None,
    layers: int,
    per_image: int | None,
    grid: tuple[int, int] | None,
) -> Request:
    """A request whose prefill is about to run; `visual` says which columns of its prompt are visual."""
    gone = np.zeros(layers, dtype=np.int64)
    if visual is None or not methods or not bool(visual.any()):
        return Request((), None, torch.zeros(1, dtype=torch.long), gone)
    here = torch.ones_like(visual)[None]
    tokens = classify(visual[None], here, per_image=per_image, grid=grid)
    return Request(methods, tokens, visual.sum()[None], gone)


@dataclass(eq=False)
class Share:
    """A request's part of one step.

    Attributes:
        request: whose it is.
        start: the first of its rows among those that run.
        count: rows that run.
        length: tokens that it has so far, with those of this step and with those that were dropped.
        columns: columns of its prompt that run, in order, while methods may decide (its prefill);
            None in other steps. Rows beyond them are answer tokens, which run again after a
            preemption.
        pictures: identifiers of its pictures, and the columns of each.
        notes: what methods remember from layer to layer.
    """

    request: Request
    start: int
    count: int
    length: int
    columns: Int[Tensor, R] | None = None
    pictures: tuple[tuple[str, Int[Tensor, n]], ...] = ()
    notes: dict[str, Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> slice:
        """All of its rows."""
        return slice(self.start, self.start + self.count)

    @property
    def prompt(self) -> slice:
        """Its rows of the prompt."""
        count = 0 if self.columns is None else self.columns.shape[0]
        return slice(self.start, self.start + count)
