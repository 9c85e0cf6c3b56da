"""Who has hooks on a model: one at a time, or they would drop each other's tokens."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_OCCUPIED: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_ENTERING = threading.Lock()


def occupy(body: nn.Module, instead: str) -> None:
    """From now on nobody else puts hooks on this model.

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


def free(body: nn.Module) -> None:
    """Ends what `occupy` began."""
    _OCCUPIED.discard(body)


@contextmanager
def occupied(body: nn.Module, instead: str) -> Iterator[None]:
    """`occupy`, for the length of a block."""
    occupy(body, instead)
    try:
        yield
    finally:
        free(body)
