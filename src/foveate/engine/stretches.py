"""Decode steps over static caches: the engine is not there, and counts them afterwards."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from .assumptions import Cache
from .cache.ledger import Ledger
from .cache.static import FrozenLayer
from .trace import Pass, Trace


class Stretch:
    """The steps after one prefill.

    Args:
        cache: frozen. It is not held.
    """

    def __init__(self, cache: Cache) -> None:
        first: FrozenLayer = cache.layers[0]
        if first.ledger is None:
            raise ValueError("this cache is empty")
        self.cache = weakref.ref(cache)
        self.ledger: Ledger = first.ledger
        self.written: Tensor = first.written
        self.begun = first.begun
        self.told = 0

    def news(self) -> list[Pass]:
        """The steps since this was last called; the host waits for the device."""
        steps = int(self.written) - self.begun
        fresh = range(self.told, steps)
        self.told = max(self.told, steps)
        return [self._pass(step) for step in fresh]

    def _pass(self, step: int) -> Pass:
        ledger = self.ledger
        none = torch.zeros_like(ledger.text)
        cuts = [(layer, none, alive) for layer, alive in ledger.alive]
        one = torch.ones_like(ledger.text)
        return Pass(ledger.step + step + 1, one, ledger.text + step, ledger.total, cuts, none)


class Stretches:
    """Those of one `apply`.

    Args:
        trace: what the steps are added to.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.open: list[Stretch] = []

    def take_up(self, cache: Cache) -> None:
        """From now on steps over this cache are counted, and allowed."""
        if any(stretch.written is cache.layers[0].written for stretch in self.open):
            return
        self.open.append(Stretch(cache))
        for layer in cache.layers:
            layer.engaged = True

    def settle(self) -> None:
        """Adds the steps so far to the trace; what is no longer there is forgotten."""
        for stretch in self.open:
            for step in stretch.news():
                self.trace.add(step)
        self.open = [stretch for stretch in self.open if stretch.cache() is not None]

    def end(self) -> None:
        """No more steps: who goes on with these caches outside is told so."""
        self.settle()
        for stretch in self.open:
            cache = stretch.cache()
            for layer in [] if cache is None else cache.layers:
                layer.engaged = False
        self.open = []
