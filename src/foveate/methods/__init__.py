"""One file per paper: the file's name is the factory's name is the name on the command line."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..core.merging import Merge
from ..core.method import Method
from ..core.scores import RANKINGS, Score

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


def knobs(name: str) -> dict[str, tuple[Any, Any]]:
    """The knobs of a method's factory: (type, default) by name."""
    factory = _FACTORIES[name]
    hints = get_type_hints(factory)
    return {k: (hints[k], p.default) for k, p in inspect.signature(factory).parameters.items()}


def parse(spec: str) -> list[Method]:
    """Methods from text, as the command line takes them: ``fastv:layer=2,keep=0.5``, joined by ``+``.

    The value of a knob that has no default may come first and without its name: ``schedule:found.json``.
    A method may also be put together from others: ``score=dart,schedule=pdrop:keep=0.5`` ranks as the one does and
    keeps as many as the other. A score is a method's or a ranking (`core.scores.RANKINGS`), a schedule any method's;
    ``merge=`` a method's or none (by default what the score's method does), ``within=`` sample or image. A part's
    knobs follow its colon; of those, score, schedule, merge and within are taken for parts.

    Raises:
        ValueError: unknown method or knob, or a value of the wrong type; says what was meant, if that can be told.
            Parts that cannot work together.
    """
    return [_parse_one(part.strip()) for part in spec.split("+")]


def _parse_one(spec: str) -> Method:
    name, _, rest = spec.partition(":")
    if "=" in name and name.partition("=")[0].strip() in PARTS:  # not schedule:file.json
        return _compose(spec)
    if name not in _FACTORIES:
        raise ValueError(f"unknown method {name!r}{_meant(name, _FACTORIES)}; there are {', '.join(_FACTORIES)}")
    known, given = knobs(name), {}
    needed = [key for key, (_, default) in known.items() if default is inspect.Parameter.empty]
    for place, pair in enumerate(rest.split(",") if rest else ()):
        key, equals, text = (part.strip() for part in pair.partition("="))
        if not pair.strip():
            raise ValueError(f"{spec!r} has an empty place between commas; expected key=value")
        if not equals and place == 0 and needed:
            key, equals, text = needed[0], "=", key
        if key not in known:
            raise ValueError(f"{name} has no knob {key!r}{_meant(key, known)}; it has {', '.join(known)}")
        if not equals or not text:
            raise ValueError(f"{pair!r} in {spec!r} has no value; expected {key}=value")
        if key in given:
            raise ValueError(f"{spec!r} gives {key} twice; give it once")
        given[key] = _value(name, key, text, known[key][0])
    lacking = [key for key in needed if key not in given]
    if lacking:
        raise ValueError(f"{name} needs {' and '.join(f'{key}=...' for key in lacking)}")
    return _FACTORIES[name](**given)


PARTS = ("score", "schedule", "merge", "within")


def _compose(spec: str) -> Method:
    """A method of named parts; see `parse`."""
    parts: dict[str, str] = {}
    key = ""
    for piece in spec.split(","):
        word, equals, text = piece.partition("=")
        if equals and word.strip() in PARTS:
            key = word.strip()
            if key in parts:
                raise ValueError(f"{spec!r} gives {key} twice; give it once")
            parts[key] = text.strip()
        else:
            parts[key] += f",{piece}"
    for needed in ("score", "schedule"):
        if not parts.get(needed):
            raise ValueError(f"{spec!r} has no {needed}; expected score=NAME:...,schedule=NAME:...")
    score, merge = _score_and_merge(parts["score"])
    if parts.get("merge", "") not in ("", "none"):
        merge = _parse_one(parts["merge"]).merge
        if merge is None:
            raise ValueError(f"{parts['merge']} merges nothing; expected a method that merges, or none")
    merge = None if parts.get("merge") == "none" else merge
    within = _value("a method of parts", "within", parts.get("within", "sample"), Literal["sample", "image"])
    made = Method(score, _parse_one(parts["schedule"]).schedule, merge, within, name=spec)
    made.check_parts()
    return made


def score_of(text: str) -> Score:
    """The score that `text` names: a ranking (`core.scores.RANKINGS`), or a method's, as ``dart`` or ``dart:pivots=8``.

    Raises:
        ValueError: there is neither of this name, or the method has no such knob.
    """
    return _score_and_merge(text)[0]


def _score_and_merge(text: str) -> tuple[Score, Merge | None]:
    """A ranking, or a method's score with what it makes of the dropped."""
    if text in RANKINGS:
        return RANKINGS[text], None
    name = text.partition(":")[0]
    if name not in _FACTORIES:
        known = [*_FACTORIES, *RANKINGS]
        raise ValueError(f"unknown score {name!r}{_meant(name, known)}; there are {', '.join(dict.fromkeys(known))}")
    method = _parse_one(text)
    return method.score, method.merge


def _meant(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, known, 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _value(name: str, key: str, text: str, hint: Any) -> Any:
    """`text` as the type of the knob; of "float | int", a number without a point is an int."""
    if get_origin(hint) is Literal:
        if text in get_args(hint):
            return text
        raise ValueError(f"{name}: {key}={text!r}; expected one of {', '.join(get_args(hint))}")
    options = [t for t in get_args(hint) or (hint,) if t is not type(None)]
    if [get_origin(t) for t in options] == [Literal]:  # or None
        return _value(name, key, text, options[0])
    several = [t for t in (hint, *options) if get_origin(t) is tuple]
    if several:
        kind = get_args(several[0])[0]
        return tuple(_value(name, key, part.strip(), kind) for part in text.split("/"))
    if options == [bool]:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise ValueError(f"{name}: {key}={text!r}; expected true or false")
    for kind in sorted(options, key=lambda t: t is not int):
        with suppress(ValueError):
            return kind(text)
    raise ValueError(f"{name}: {key}={text!r}; expected {' or '.join(t.__name__ for t in options)}")
