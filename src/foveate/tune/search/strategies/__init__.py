"""One file per strategy.

The file's name is the function's name, and the value of `foveate search --algorithm`.

A strategy is a function from a `Problem` and its own knobs to the shares that each layer keeps.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

from ..problem import Problem

Strategy = Callable[..., Sequence[float]]


def strategies() -> dict[str, Strategy]:
    """Every strategy of this package by name; a new file is found by itself."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        name = module.name
        found[name] = getattr(importlib.import_module(f"{__name__}.{name}"), name)
    return found


def knobs(name: str) -> dict[str, tuple[Any, Any]]:
    """A strategy's knobs: (type, default) by name.

    Raises:
        ValueError: there is no such strategy.
    """
    known = strategies()
    if name not in known:
        raise ValueError(f"unknown algorithm {name!r}; expected one of {', '.join(known)}")
    hints = get_type_hints(known[name])
    _, *own = inspect.signature(known[name]).parameters.values()  # the first is the problem
    return {parameter.name: (hints[parameter.name], parameter.default) for parameter in own}


def settled(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """All knobs of a strategy, those given and the others' defaults; what is None was not given.

    Raises:
        ValueError: the strategy has no such knob, or needs one that was not given.
    """
    known = knobs(name)
    told = {key: value for key, value in given.items() if value is not None}
    options = [f"--{key}" for key in known]
    for key in told:
        if key not in known:
            raise ValueError(f"{name} has no --{key}; it has {', '.join(options) or 'none'}")
    lacking = []
    for key, (_, default) in known.items():
        if default is inspect.Parameter.empty and key not in told:
            lacking.append(f"--{key}")
    if lacking:
        raise ValueError(f"{name} needs {' and '.join(lacking)}")
    return {key: told.get(key, default) for key, (_, default) in known.items()}


def search(name: str, problem: Problem, **given: Any) -> tuple[float, ...]:
    """What a strategy finds: shares in [0, 1] that never grow with depth.

    They are all 1 before the problem's first layer.
    """
    found = strategies()[name](problem, **settled(name, given))
    return tuple(round(float(share), 6) for share in found)
