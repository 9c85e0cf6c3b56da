"""What a method's factory is given: numbers where its knobs are numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from numbers import Real
from types import NoneType, UnionType
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

P = ParamSpec("P")
Made = TypeVar("Made")
_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    tuple: "a tuple of numbers",
    NoneType: "None",
}


def checked(factory: Callable[P, Made]) -> Callable[P, Made]:
    """A factory that refuses text in place of a number, or the like, before it reckons with it.

    Raises:
        ValueError: when called, a knob that takes numbers was given something else.
    """
    signature = inspect.signature(factory)

    @wraps(factory)
    def make(*args: P.args, **kwargs: P.kwargs) -> Made:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:  # Python's own words name the factory
            return factory(*args, **kwargs)
        hints = get_type_hints(factory)
        for knob, value in given.items():
            kinds = _kinds(hints.get(knob, Any))  # `self` has no hint
            if kinds <= set(_WORDS) and not any(_is(value, kind) for kind in kinds):
                named = kinds - {int} if float in kinds else kinds
                wanted = " or ".join(words for kind, words in _WORDS.items() if kind in named)
                raise ValueError(f"{factory.__name__}: {knob}={value!r}; expected {wanted}")
        return factory(*args, **kwargs)

    return make


def _kinds(hint: Any) -> set[Any]:
    """The types of a union, or the one type that there is."""
    several = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return {get_origin(kind) or kind for kind in several}


def _is(value: Any, kind: Any) -> bool:
    """Whether a value may be meant as this type: any number as another number, a list as a tuple.

    True and False are no numbers here, though Python has them so.
    """
    if kind in (int, float):
        return isinstance(value, Real) and not isinstance(value, bool)
    return isinstance(value, (tuple, list) if kind is tuple else kind)
