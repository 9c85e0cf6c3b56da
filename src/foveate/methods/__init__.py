"""One file per paper: the file's name is the factory's name is the name on the command line."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable

from ..core.method import Method

Factory = Callable[..., Method]


def _discover() -> dict[str, Factory]:
    modules = {m.name: importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)}
    return {name: getattr(module, name) for name, module in modules.items()}


_FACTORIES = _discover()
globals().update(_FACTORIES)  # methods.fastv is the factory, not the module that holds it


def factories() -> dict[str, Factory]:
    """Every method of this package by name; a new file is found by itself."""
    return dict(_FACTORIES)


def __getattr__(name: str) -> Factory:
    raise AttributeError(f"no method {name!r}; there are {', '.join(_FACTORIES)}")


def knobs(name: str) -> dict[str, inspect.Parameter]:
    """The parameters of a method's factory, by name."""
    return dict(inspect.signature(_FACTORIES[name]).parameters)
