"""Methods as text: the one reader of ``name:knob=value,...``, of ``score=...,schedule=...``, and of
both joined by +.

`read` takes a text apart, into `Named` and `Composed`; `parse` makes the methods that it names.
What tunes a knob or shortens a name works on the parts and writes them back with `str`.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .. import methods
from ..core.contract import Merge, Score
from ..core.method import Method
from ..core.scores import RANKINGS

PARTS = ("score", "schedule", "merge", "within", "weigh")
SPEAKING = (
    "weigh",
    "merge",
    "strength",
    "place",
    "cutoff",
)  # knobs of every method: `Method.weighted`
MARK = "?"  # in place of the value of a knob that is to be tuned


@dataclass(frozen=True)
class Named:
    """``name:knob=value,...``.

    Attributes:
        name: of a method, or of a ranking where a score is meant.
        knobs: (knob, value) as written; "" for the knob of a first value that came without one.
    """

    name: str
    knobs: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        pairs = ",".join(f"{key}={value}" if key else value for key, value in self.knobs)
        return f"{self.name}:{pairs}" if pairs else self.name

    def without(self, *keys: str) -> Named:
        """The same, without these knobs."""
        return Named(self.name, tuple(pair for pair in self.knobs if pair[0] not in keys))

    def filled(self, value: str) -> Named:
        """The same, with `value` in place of the mark."""
        return Named(
            self.name, tuple((key, value if old == MARK else old) for key, old in self.knobs)
        )

    def marked(self) -> str | None:
        """The knob whose value is the mark: None if there is none, "" for a value without a name."""
        return next((key for key, value in self.knobs if value == MARK), None)


@dataclass(frozen=True)
class Composed:
    """``score=...,schedule=...,merge=...,within=...,weigh=...``.

    Attributes:
        parts: each part's text, by `PARTS`, read; in the order given.
    """

    parts: tuple[tuple[str, Named], ...]

    def __str__(self) -> str:
        return ",".join(f"{key}={value}" for key, value in self.parts)


def read(text: str) -> list[Named | Composed]:
    """The methods that a text names, taken apart; whether there are such methods and knobs is not
    looked at.

    Raises:
        ValueError: an empty place, a knob without a value, a part or a knob given twice, or a part
            that is lacking.
    """
    pieces = [piece.strip() for piece in text.split("+")]
    if len(pieces) > 1 and "" in pieces:
        raise ValueError(
            f"{text!r} has nothing beside a +; expected methods joined by +, like vscan1+vscan2"
        )
    return [_read_one(piece) for piece in pieces]


def write(parts: Iterable[Named | Composed]) -> str:
    """The text that `read` takes apart."""
    return "+".join(map(str, parts))


def named_in(parts: Iterable[Named | Composed]) -> Iterator[Named]:
    """All that is named, the parts of composed methods too."""
    for part in parts:
        yield from [part] if isinstance(part, Named) else [named for _, named in part.parts]


def filled(text: str, value: str) -> str:
    """The text with `value` where a knob is marked."""
    return write(
        part.filled(value)
        if isinstance(part, Named)
        else Composed(tuple((key, named.filled(value)) for key, named in part.parts))
        for part in read(text)
    )


def _read_one(text: str) -> Named | Composed:
    word, equals, _ = text.partition(":")[0].partition(
        "="
    )  # a file may be named like schedule:a=b.json
    return _read_composed(text) if equals and word.strip() in PARTS else _read_named(text)


def _read_named(text: str) -> Named:
    """A name and its knobs."""
    name, _, rest = text.partition(":")
    knobs: list[tuple[str, str]] = []
    for place, pair in enumerate(rest.split(",") if rest else ()):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not pair.strip():
            raise ValueError(f"{text!r} has an empty place between commas; expected key=value")
        if not equals and place == 0:
            key, value = "", key
        elif not equals or not value:
            raise ValueError(f"{pair.strip()!r} in {text!r} has no value; expected {key}=value")
        if key in dict(knobs):
            raise ValueError(f"{text!r} gives {key} twice; give it once")
        knobs.append((key, value))
    return Named(name.strip(), tuple(knobs))


def _read_composed(text: str) -> Composed:
    """Parts by their keys: what follows a comma and is no part's key is a knob of the part before."""
    texts: dict[str, str] = {}
    key = ""
    for piece in text.split(","):
        word, equals, value = piece.partition("=")
        if equals and word.strip() in PARTS:
            key = word.strip()
            if key in texts:
                raise ValueError(f"{text!r} gives {key} twice; give it once")
            texts[key] = value.strip()
        else:  # a knob of the part before; weigh and merge take theirs without a colon, as all methods do
            first = key in ("weigh", "merge") and ":" not in texts[key]
            texts[key] += f"{':' if first else ','}{piece.strip()}"
    for needed in ("score", "schedule"):
        if not texts.get(needed):
            raise ValueError(f"{text!r} has no {needed}; expected score=NAME:...,schedule=NAME:...")
    return Composed(tuple((key, _read_named(value)) for key, value in texts.items()))


def parse(text: str) -> list[Method]:
    """Methods from text, as the command line takes them: ``fastv:layer=2,keep=0.5``, joined by
    ``+``.

    The value of a knob that has no default may come first and without its name:
    ``schedule:found.json``. A method may also be put together from others:
    ``score=dart,schedule=pdrop:keep=0.5`` ranks as the one does and keeps as many as the other. A
    score is a method's or a ranking (`core.scores.RANKINGS`), a schedule any method's; ``merge=`` a
    method's, mean or none (by default what the score's method does), ``within=`` sample or image. A
    part's knobs follow its colon; of those, score, schedule, merge, within and weigh are taken for
    parts.

    Every method, and every one of parts, takes the knobs of `Method.weighted` in addition, by which
    kept tokens speak for the dropped: ``divprune:keep=0.125,weigh=nearest,merge=mean``. Without
    them nothing is weighed.

    Raises:
        ValueError: unknown method or knob, or a value of the wrong type; says what was meant, if
            that can be told. Parts that cannot work together. Of several methods or parts the one
            that is wrong is named.
    """
    parts = read(text)
    made = []
    for part in parts:
        with _naming(str(part), text, several=len(parts) > 1):
            made.append(_made(part) if isinstance(part, Named) else _composed(part))
    return made


def as_methods(given: Iterable[Method | str] | str) -> tuple[Method, ...]:
    """Methods as they are, and those that texts name, in order.

    Args:
        given: methods, and texts as `parse` takes them; or one text alone.

    Raises:
        TypeError: something is neither.
        ValueError: a text is wrong; see `parse`.
    """
    found: list[Method] = []
    for one in [given] if isinstance(given, str) else given:
        if isinstance(one, str):
            found += parse(one)
        elif isinstance(one, Method):
            found.append(one)
        else:
            name = getattr(one, "__name__", "")
            call = f"; call it: {name}()" if name in methods.factories() else ""
            raise TypeError(
                f"got {type(one).__name__} {one!r}{call}. Expected a Method, such as foveate.methods.fastv(), or text, "
                "such as 'fastv:keep=0.5'"
            )
    return tuple(found)


def score_of(text: str) -> Score:
    """The score that `text` names: a ranking (`core.scores.RANKINGS`), or a method's, as ``dart``
    or ``dart:pivots=8``.

    Raises:
        ValueError: there is neither of this name, or the method has no such knob.
    """
    return _score_and_merge(_read_named(text))[0]


def knobs(name: str) -> dict[str, tuple[Any, Any]]:
    """The knobs of a method's factory: (type, default) by name."""
    factory = methods.factories()[name]
    hints = get_type_hints(factory)
    return {k: (hints[k], p.default) for k, p in inspect.signature(factory).parameters.items()}


@contextmanager
def _naming(part: str, whole: str, several: bool) -> Iterator[None]:
    """Adds to an error which part of the text it is about, where there are several."""
    try:
        yield
    except ValueError as error:
        if not several:
            raise
        raise ValueError(f"{error} (in {part!r} of {whole!r})") from error


def _made(spec: Named) -> Method:
    """The method of this name with these knobs.

    What reads weights and means from a file has their knobs itself.
    """
    own = knobs(spec.name) if spec.name in methods.factories() else ()
    shared = [knob for knob in SPEAKING if knob not in own]
    given = dict(pair for pair in spec.knobs if pair[0] in shared)
    return _weighted(_made_alone(spec.without(*shared)), given)


def _weighted(method: Method, given: dict[str, str]) -> Method:
    """`method` with kept tokens that speak for the dropped, as these knobs have it; as it is if
    there are none.
    """
    if not given:
        return method
    hints = get_type_hints(Method.weighted)
    values = {key: _value(method.name, key, text, hints[key]) for key, text in given.items()}
    return method.weighted(**{"weigh": "own", "merge": "own", **values})


def _made_alone(spec: Named) -> Method:
    """The method of this name with these knobs, all of which are its own."""
    factories = methods.factories()
    if spec.name not in factories:
        meant = _meant(spec.name, factories)
        raise ValueError(f"unknown method {spec.name!r}{meant}; there are {', '.join(factories)}")
    known = knobs(spec.name)
    every = tuple(dict.fromkeys((*known, *SPEAKING)))
    given = {}
    needed = [key for key, (_, default) in known.items() if default is inspect.Parameter.empty]
    for key, value in spec.knobs:
        if not key and not needed:
            if value not in known:
                if value in SPEAKING:
                    raise ValueError(
                        f"{value!r} in {str(spec)!r} has no value; expected {value}=value"
                    )
                raise ValueError(
                    f"{spec.name} has no knob {value!r}{_meant(value, every)}; it has {', '.join(every)}"
                )
            raise ValueError(f"{value!r} in {str(spec)!r} has no value; expected {value}=value")
        knob = key or needed[0]
        if knob not in known:
            raise ValueError(
                f"{spec.name} has no knob {knob!r}{_meant(knob, every)}; it has {', '.join(every)}"
            )
        if knob in given:
            raise ValueError(f"{str(spec)!r} gives {knob} twice; give it once")
        given[knob] = _value(spec.name, knob, value, known[knob][0])
    lacking = [key for key in needed if key not in given]
    if lacking:
        raise ValueError(f"{spec.name} needs {' and '.join(f'{key}=...' for key in lacking)}")
    return factories[spec.name](**given)


def _composed(spec: Composed) -> Method:
    """A method of named parts; see `parse`."""
    given = dict(spec.parts)
    whole = str(spec)
    with _naming(f"score={given['score']}", whole, several=True):
        score, merge = _score_and_merge(given["score"])
    with _naming(f"schedule={given['schedule']}", whole, several=True):
        schedule = _made(given["schedule"]).schedule
    other = given.get("merge", Named(""))
    speaking: dict[str, str] = {}
    if other.name == "mean":
        speaking |= {"merge": "mean", **dict(other.knobs)}
    elif other.name == "none":
        merge = None
    elif other.name:
        known = ("mean", "none", *methods.factories())
        if other.name not in known:
            raise ValueError(
                f"unknown merge {other.name!r}{_meant(other.name, known)}; there are {', '.join(known)} (in {whole!r})"
            )
        with _naming(f"merge={other}", whole, several=True):
            merge = _made(other).merge
        if merge is None:
            raise ValueError(
                f"{str(other)!r} merges nothing; expected a method that merges, mean or none"
            )
    if "weigh" in given:
        speaking |= {"weigh": given["weigh"].name, **dict(given["weigh"].knobs)}
    within = str(given.get("within", "sample"))
    chosen: Literal["sample", "image"] = _value(
        "a method of parts", "within", within, Literal["sample", "image"]
    )
    made = Method(score, schedule, merge, chosen, name="method of parts")
    with _naming("weigh and merge", whole, several=bool(speaking)):
        made = _weighted(made, speaking)
    made = made.named(whole)
    made.check_parts()
    return made


def _score_and_merge(spec: Named) -> tuple[Score, Merge | None]:
    """A ranking, or a method's score with what it makes of the dropped."""
    if spec.name in RANKINGS and not spec.knobs:
        return RANKINGS[spec.name], None
    if spec.name in RANKINGS and spec.name not in methods.factories():
        raise ValueError(
            f"the ranking {spec.name} has no knobs; got {str(spec)!r}, expected {spec.name!r}"
        )
    if spec.name not in methods.factories():
        known = dict.fromkeys([*methods.factories(), *RANKINGS])
        raise ValueError(
            f"unknown score {spec.name!r}{_meant(spec.name, known)}; there are {', '.join(known)}"
        )
    method = _made(spec)
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
