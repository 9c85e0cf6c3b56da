"""What really happened: how many visual tokens each layer saw, at each step, in each sample."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor


class Row(NamedTuple):
    """Visual tokens that `layer` attended to at `step` in `sample`.

    `call` counts forwards since `apply`.
    """

    call: int
    step: int
    layer: int
    sample: int
    kept: int


@dataclass
class Pass:
    """One forward. Tensors are (B,) and stay where they were made until somebody reads them.

    Attributes:
        step: 0 for a prefill, else the decode step.
        text: tokens of the forward that are neither visual nor padding.
        past: such tokens in the cache before it.
        total: visual tokens given so far, this forward's included.
        cuts: (layer, visual rows that run from it on, visual tokens in its cache), by ascending
            layer.
        asked: (layer, query rows, keys, rows whose keys were projected anew) of every recomputation
            of attention.
        new: visual tokens that came with this forward.
        cached: whether keys and values are kept.
        control: FLOPs that schedules say they spent, per sample.
        spent: FLOPs of all samples together: rows of the vision tower, and what scores and merges
            say they spent.
        lost: (layer, how many tokens nobody speaks for any more) of every cut by a method that
            weighs.
    """

    step: int
    text: Tensor
    past: Tensor
    total: Tensor
    cuts: list[tuple[int, Tensor, Tensor]]
    new: Tensor
    cached: bool = True
    asked: list[tuple[int, int, int, int]] = field(default_factory=list)
    control: float = 0.0
    spent: float = 0.0
    lost: list[tuple[int, Tensor]] = field(default_factory=list)

    def spend(self, flops: float) -> None:
        """Adds to `spent`."""
        self.spent += flops

    def visual(self, layers: int) -> tuple[Tensor, Tensor]:
        """Visual rows run, and visual tokens cached before, per layer: two (L B)."""
        fresh: list[Tensor] = []
        cached: list[Tensor] = []
        for layer in range(layers):
            last = [cut for cut in self.cuts if cut[0] <= layer][-1]
            fresh.append(last[1])
            cached.append(last[2])
        return torch.stack(fresh).cpu(), torch.stack(cached).cpu()


@dataclass
class Trace:
    """The record of an `apply`. It grows while the model runs.

    Attributes:
        layers: depth of the decoder.
        methods: names of the methods applied.
        passes: every forward that has ended.
    """

    layers: int
    methods: tuple[str, ...] = ()
    passes: list[Pass] = field(default_factory=list)

    def __iter__(self) -> Iterator[Row]:
        for call, done in enumerate(self.passes):
            fresh, cached = done.visual(self.layers)
            for layer, counts in enumerate((fresh + cached).tolist()):
                for sample, kept in enumerate(counts):
                    yield Row(call, done.step, layer, sample, kept)

    @property
    def kept(self) -> list[Row]:
        """All rows (call, step, layer, sample, kept)."""
        return list(self)

    def prefill(self, call: int = 0) -> list[list[int]]:
        """Visual tokens seen per layer and sample in the prefill that was forward number `call`.

        Raises:
            ValueError: there is no such forward.
        """
        if not 0 <= call < len(self.passes):
            raise ValueError(
                f"the trace holds {len(self.passes)} forwards; there is no number {call}"
            )
        fresh, cached = self.passes[call].visual(self.layers)
        return (fresh + cached).tolist()

    def mean_kept(self) -> float:
        """Share of the visual tokens that a layer sees in the prefills, mean over layers, samples
        and prefills.
        """
        shares = []
        for done in (p for p in self.passes if p.step == 0):
            fresh, cached = done.visual(self.layers)
            start = done.total.cpu()
            has = start > 0
            if bool(has.any()):
                shares.append(((fresh + cached)[:, has] / start[has]).mean().item())
        return sum(shares) / len(shares) if shares else 1.0

    def lost(self) -> float:
        """Share of the visual tokens that nobody speaks for at the end, mean over samples and
        forwards that cut.

        It is 0 without weights. A method that weighs lets every kept token speak for what joined
        it. What an image held is lost if the image keeps nothing.
        """
        shares = []
        for done in self.passes:
            gone = sum(tokens for _, tokens in done.lost)
            has = done.total > 0
            if isinstance(gone, Tensor) and bool(has.any()):
                shares.append((gone[has] / done.total[has]).mean().item())
        return sum(shares) / len(shares) if shares else 0.0

    def save(self, path: str | Path) -> None:
        """Writes the rows as JSON."""
        body = {
            "layers": self.layers,
            "methods": self.methods,
            "fields": Row._fields,
            "kept": self.kept,
        }
        Path(path).write_text(json.dumps(body))
