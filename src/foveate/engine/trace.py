"""What really happened: how many visual tokens each layer saw, at each step, in each sample."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..files import write_text


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
class Mean:
    """A mean of values of which none is kept."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float | None) -> None:
        """Takes a value in; None is none."""
        if value is not None:
            self.total += value
            self.count += 1


@dataclass
class Trace:
    """The record of an `apply`. It grows while the model runs, up to `last` forwards.

    Attributes:
        layers: depth of the decoder.
        methods: names of the methods applied.
        passes: the forwards that have ended; only the newest `last` of them.
        last: how many forwards are held. Older ones count in the means alone. None holds all.
        forgotten: how many forwards have left `passes`.
    """

    layers: int
    methods: tuple[str, ...] = ()
    passes: list[Pass] = field(default_factory=list)
    last: int | None = None
    forgotten: int = 0
    _kept: Mean = field(default_factory=Mean)
    _lost: Mean = field(default_factory=Mean)

    def add(self, done: Pass) -> None:
        """Takes in a forward that has ended. Of one that leaves, the means keep what they need."""
        self.passes.append(done)
        while self.last is not None and len(self.passes) > self.last:
            oldest = self.passes.pop(0)
            self._kept.add(self._share_kept(oldest))
            self._lost.add(_share_lost(oldest))
            self.forgotten += 1

    @property
    def calls(self) -> int:
        """Forwards that have ended since `apply`, the forgotten ones included."""
        return self.forgotten + len(self.passes)

    def __iter__(self) -> Iterator[Row]:
        for call, done in enumerate(self.passes, self.forgotten):
            fresh, cached = done.visual(self.layers)
            for layer, counts in enumerate((fresh + cached).tolist()):
                for sample, kept in enumerate(counts):
                    yield Row(call, done.step, layer, sample, kept)

    @property
    def kept(self) -> list[Row]:
        """All rows (call, step, layer, sample, kept) of the forwards that are held."""
        return list(self)

    def prefill(self, call: int = 0) -> list[list[int]]:
        """Visual tokens seen per layer and sample in the prefill that was forward number `call`.

        Raises:
            ValueError: there is no such forward, or it is forgotten.
        """
        self._check_held(call)
        fresh, cached = self.passes[call - self.forgotten].visual(self.layers)
        return (fresh + cached).tolist()

    def _check_held(self, call: int) -> None:
        if not 0 <= call < self.calls:
            raise ValueError(f"the trace holds {self.calls} forwards; there is no number {call}")
        if call < self.forgotten:
            raise ValueError(
                f"forward {call} has left the trace, which holds the newest {self.last}; give a larger trace_last, "
                "or None to hold all"
            )

    def whole(self) -> list[Pass]:
        """All forwards since `apply`, for what adds up over them.

        Raises:
            ValueError: some are forgotten.
        """
        if self.forgotten:
            self._check_held(0)
        return self.passes

    def mean_kept(self) -> float:
        """Share of the visual tokens that a layer sees in the prefills, mean over layers, samples
        and prefills; forgotten ones count, too.
        """
        return self._mean(self._kept, self._share_kept, 1.0)

    def lost(self) -> float:
        """Share of the visual tokens that nobody speaks for at the end, mean over samples and
        forwards that cut; forgotten ones count, too.

        It is 0 without weights. A method that weighs lets every kept token speak for what joined
        it. What an image held is lost if the image keeps nothing.
        """
        return self._mean(self._lost, _share_lost, 0.0)

    def _mean(self, before: Mean, share: Callable[[Pass], float | None], none: float) -> float:
        """Of the forgotten forwards and those held; `none` where there is no share to take."""
        found = replace(before)
        for done in self.passes:
            found.add(share(done))
        return found.total / found.count if found.count else none

    def _share_kept(self, done: Pass) -> float | None:
        """Of one prefill, mean over layers and samples; None of a decode step or without images."""
        if done.step:
            return None
        fresh, cached = done.visual(self.layers)
        start = done.total.cpu()
        has = start > 0
        return (
            ((fresh + cached)[:, has].double() / start[has]).mean().item()
            if bool(has.any())
            else None
        )

    def save(self, path: str | Path) -> None:
        """Writes the rows of the forwards that are held, as JSON."""
        body = {
            "layers": self.layers,
            "methods": self.methods,
            "forgotten": self.forgotten,
            "fields": Row._fields,
            "kept": self.kept,
        }
        write_text(path, json.dumps(body))


def _share_lost(done: Pass) -> float | None:
    """Of one forward, mean over samples; None where no method that weighs has cut."""
    gone = sum(tokens for _, tokens in done.lost)
    has = done.total > 0
    if isinstance(gone, Tensor) and bool(has.any()):
        return (gone[has].double() / done.total[has]).mean().item()
    return None
