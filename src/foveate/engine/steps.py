"""Decode steps over static caches: nothing of the engine runs in them, and it counts them afterwards."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from .assumptions import Cache
from .attention.perlayer import SeenConfig
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
        self.told = first.steps()

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


class Steps:
    """Those of one `apply`.

    Args:
        trace: what they are added to.
        decoder: of the model.
    """

    def __init__(self, trace: Trace, decoder: Any) -> None:
        self.trace = trace
        self.decoder = decoder
        self.open: list[Stretch] = []
        self.current: weakref.ref[Cache] | None = None
        self.lent: list[SeenConfig] = []

    def allow(self, cache: Cache) -> None:
        """From now on steps may run over this cache, and are counted."""
        written = cache.layers[0].written
        if not any(stretch.written is written for stretch in self.open):
            self.open.append(Stretch(cache))
            for layer in cache.layers:
                layer.engaged = True

    def over(self, cache: Cache) -> None:
        """Lets each layer see what its slots in this cache hold."""
        if self.current is not None and self.current() is cache:
            return
        self.stop()
        self.allow(cache)
        self.current = weakref.ref(cache)
        for layer, held in zip(self.decoder.layers, cache.layers, strict=True):
            self.lent.append(SeenConfig(layer.self_attn, held.sight))

    def stop(self) -> None:
        """Gives attention modules their configurations again."""
        for config in self.lent:
            config.put_back()
        self.lent = []
        self.current = None

    def settle(self) -> None:
        """Adds the steps so far to the trace; caches that are no longer there are forgotten."""
        for stretch in self.open:
            for step in stretch.news():
                self.trace.add(step)
        self.open = [stretch for stretch in self.open if stretch.cache() is not None]

    def end(self) -> None:
        """No more steps: who goes on with these caches outside is told so."""
        self.stop()
        self.settle()
        for stretch in self.open:
            cache = stretch.cache()
            for layer in [] if cache is None else cache.layers:
                layer.engaged = False
        self.open = []
