"""Who has hooks on a model: one at a time, or they would drop each other's tokens."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_OCCUPIED: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_ENTERING = threading.Lock()


@contextmanager
def occupied(body: nn.Module, instead: str) -> Iterator[None]:
    """Within it nobody else puts hooks on this model.

    Args:
        body: of the model.
        instead: what to do where somebody has.

    Raises:
        RuntimeError: somebody has.
    """
    with _ENTERING:
        if body in _OCCUPIED:
            raise RuntimeError(f"foveate.apply is already active on this model; {instead}")
        _OCCUPIED.add(body)
    try:
        yield
    finally:
        _OCCUPIED.discard(body)
