"""One file per strategy: the file's name is the function's name is `foveate search --algorithm`'s value.

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
    modules = {
        m.name: importlib.import_module(f"{__name__}.{m.name}")
        for m in pkgutil.iter_modules(__path__)
    }
    return {name: getattr(module, name) for name, module in modules.items()}


def knobs(name: str) -> dict[str, tuple[Any, Any]]:
    """A strategy's knobs: (type, default) by name.

    Raises:
        ValueError: there is no such strategy.
    """
    known = strategies()
    if name not in known:
        raise ValueError(f"unknown algorithm {name!r}; expected one of {', '.join(known)}")
    hints = get_type_hints(known[name])
    return {
        k: (hints[k], p.default)
        for k, p in list(inspect.signature(known[name]).parameters.items())[1:]
    }


def settled(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """All knobs of a strategy, those given and the others' defaults; what is None was not given.

    Raises:
        ValueError: the strategy has no such knob, or needs one that was not given.
    """
    known = knobs(name)
    told = {key: value for key, value in given.items() if value is not None}
    for key in told:
        if key not in known:
            raise ValueError(
                f"{name} has no --{key}; it has {', '.join(f'--{k}' for k in known) or 'none'}"
            )
    lacking = [
        k
        for k, (_, default) in known.items()
        if default is inspect.Parameter.empty and k not in told
    ]
    if lacking:
        raise ValueError(f"{name} needs {' and '.join(f'--{key}' for key in lacking)}")
    return {key: told.get(key, default) for key, (_, default) in known.items()}


def search(name: str, problem: Problem, **given: Any) -> tuple[float, ...]:
    """What a strategy finds: shares in [0, 1] that never grow with depth, all 1 before the problem's first layer."""
    found = strategies()[name](problem, **settled(name, given))
    return tuple(round(float(share), 6) for share in found)
