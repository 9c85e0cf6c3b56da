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
from ..engine.cache.numbers import Numbers
from .report import Held


@dataclass(eq=False)
class Request:
    """What is known of a request from its prefill to its end.

    Attributes:
        methods: that decide for it.
        tokens: what every column of its prompt is; None for one without pictures.
        total: visual tokens that it started with, (1).
        gone: for each layer, how many of its tokens the layer does not hold.
        decodes: whether methods may decide while it decodes.
        kept: for each layer, the prompt's columns that it holds, ascending; only if it decodes so.
        numbers: for each layer, for how many tokens columns speak; None where each for itself.
        notes: what methods remember from layer to layer, and from step to step.
    """

    methods: tuple[Method, ...]
    tokens: TokenMap | None
    total: Int[Tensor, 1]
    gone: npt.NDArray[np.int64]
    decodes: bool
    kept: list[Int[Tensor, n]]
    numbers: list[Numbers | None]
    notes: dict[str, Tensor] = field(default_factory=dict)

    @property
    def prompt(self) -> int:
        """Columns of the prompt."""
        return 0 if self.tokens is None else self.tokens.kind.shape[1]

    def report(self) -> Held:
        """How many visual tokens it holds."""
        total = int(self.total)
        return Held(total, tuple(total - int(gone) for gone in self.gone))

    def acts(self, step: int) -> bool:
        """Whether some method is to be consulted at `step`."""
        return any(
            method.acts(layer, step) for method in self.methods for layer in range(len(self.gone))
        )

    def held(self, layer: int, length: int) -> Int[Tensor, S]:
        """Columns that a layer holds, in the order of their slots, of the first `length`."""
        kept = self.kept[layer]
        return torch.cat([kept, torch.arange(self.prompt, length, device=kept.device)])


def request_of(
    methods: tuple[Method, ...],
    visual: Bool[Tensor, T] | None,
    layers: int,
    per_image: int | None,
    grid: tuple[int, int] | None,
    decodes: bool,
) -> Request:
    """A request whose prefill is about to run; `visual` says which columns of its prompt are visual."""
    gone = np.zeros(layers, dtype=np.int64)
    numbers: list[Numbers | None] = [None] * layers
    if visual is None or not methods or not bool(visual.any()):
        return Request((), None, torch.zeros(1, dtype=torch.long), gone, False, [], numbers)
    here = torch.ones_like(visual)[None]
    tokens = classify(visual[None], here, per_image=per_image, grid=grid)
    every = torch.arange(len(visual), device=visual.device)
    kept = [every] * layers if decodes else []
    return Request(methods, tokens, visual.sum()[None], gone, decodes, kept, numbers)


@dataclass(eq=False)
class Share:
    """A request's part of one step.

    Attributes:
        request: whose it is.
        start: the first of its rows among those that run.
        count: rows that run.
        length: tokens that it has so far, with those of this step and with those that were dropped.
        step: 0 in its prefill, t >= 1 before decode step t.
        columns: where methods may decide, the columns that run and that they look at, in order:
            those of its prompt, or the one being decoded. None where no method may decide. Rows
            beyond them are answer tokens, which run again after a preemption.
        pictures: identifiers of its pictures, and the columns of each.
    """

    request: Request
    start: int
    count: int
    length: int
    step: int = 0
    columns: Int[Tensor, R] | None = None
    pictures: tuple[tuple[str, Int[Tensor, n]], ...] = ()

    @property
    def rows(self) -> slice:
        """All of its rows."""
        return slice(self.start, self.start + self.count)

    @property
    def shown(self) -> slice:
        """Its rows that methods look at."""
        count = 0 if self.columns is None else self.columns.shape[0]
        return slice(self.start, self.start + count)
