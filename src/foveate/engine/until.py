"""A forward that ends early: what enters a layer is caught, and nothing from it on is run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class _Reached(Exception):  # noqa: N818
    """The module is about to run."""


@contextmanager
def until(module: nn.Module, *passed: nn.Module) -> Iterator[dict[nn.Module, Any]]:
    """Ends the forward within the block when `module` is about to run.

    Gives what `module`, and each of `passed` on the way, was called with: `states_of` reads it.
    """
    caught: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def catch(one: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught[one] = (args, kwargs)
        if one is module:
            raise _Reached

    handles = [one.register_forward_pre_hook(catch, with_kwargs=True) for one in {module, *passed}]
    try:
        yield caught
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()


def states_of(call: tuple[tuple[Any, ...], dict[str, Any]]) -> Tensor:
    """The hidden states (B T D) that a layer was called with."""
    args, kwargs = call
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states
