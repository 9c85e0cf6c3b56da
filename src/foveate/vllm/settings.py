"""What a server was asked to do, and which method a request may choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

from ..core.method import Method
from ..core.tower import Layer
from ..methods import factories, knobs, parse
from ..methods.dyrate import LearnedRate
from ..methods.spec import Named, named_in, read

Way = Literal["inside", "before"]
KEY = "foveate"  # in vLLM's additional_config, and in a request's vllm_xargs
NONE = "none"  # the method that keeps everything
DEEPEST = 128  # no decoder has more layers


@dataclass(frozen=True)
class Settings:
    """What `--additional-config '{"foveate": {...}}'` says.

    Attributes:
        method: the method of requests that choose none, as text; "none" keeps all tokens.
        also: further methods, as text, that a request may choose. Methods that name a file must be
            listed here, and those for which the server must be prepared: methods that look at the
            vision tower, weigh, or drop tokens while decoding.
        way: where tokens leave: "inside" the decoder, at any layer and step; or "before" it, so that
            the prompt is shorter for all of vLLM (see `before`).

    Raises:
        ValueError: a method that is not known, or that cannot be right inside vLLM.
    """

    method: str
    also: tuple[str, ...] = ()
    way: Way = "inside"

    def __post_init__(self) -> None:
        if self.way not in get_args(Way):
            raise ValueError(f"way={self.way!r}; expected one of {', '.join(get_args(Way))}")
        for text in self.listed:
            check_text(text)

    @staticmethod
    def of(additional: Any) -> Settings | None:
        """The settings in vLLM's `additional_config`; None if it says nothing of Foveate.

        Raises:
            ValueError: they are not of the known form.
        """
        said = additional.get(KEY) if isinstance(additional, Mapping) else None
        if said is None:
            return None
        if isinstance(said, str):
            said = {"method": said}
        known = {"method", "also", "way"}
        if not isinstance(said, Mapping) or "method" not in said or set(said) - known:
            raise ValueError(
                f'additional_config has {KEY}={said!r}; expected {{"method": "fastv:layer=2,keep=0.5"}}, and '
                'perhaps "also": [...], the further methods that requests may choose, and "way": "inside" or "before"'
            )
        also = said.get("also", [])
        texts = [said["method"], *(also if isinstance(also, list | tuple) else [also])]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"additional_config has {KEY}={said!r}; expected methods as text")
        return Settings(texts[0], tuple(texts[1:]), said.get("way", "inside"))

    @property
    def listed(self) -> tuple[str, ...]:
        """All methods that the server names."""
        return (self.method, *self.also)

    @property
    def tower(self) -> tuple[Layer, ...]:
        """Layers of the vision tower at which some listed method looks."""
        found = (layer for text in self.listed for layer in tower_of(methods_of(text)))
        return tuple(dict.fromkeys(found))

    @property
    def weighs(self) -> bool:
        """Whether some listed method weighs, so that keys carry biases."""
        return any(weighs(text) for text in self.listed)

    @property
    def decodes(self) -> bool:
        """Whether some listed method drops tokens while decoding."""
        return any(drops_while_decoding(text) for text in self.listed)

    def chosen(self, extra: Mapping[str, Any] | None) -> Any:
        """The method's text for a request with these `vllm_xargs`; not checked."""
        said = None if extra is None else extra.get(KEY)
        return self.method if said is None else said

    def check_request(self, text: Any) -> tuple[Method, ...]:
        """The methods of a request that chose `text`.

        Raises:
            ValueError: it is not known, cannot be right inside vLLM, names a file, or is one for
                which this server is not prepared.
        """
        if not isinstance(text, str):
            raise ValueError(
                f"{KEY}={text!r}; expected a method as text, like fastv:keep=0.5, or none"
            )
        if text in self.listed:
            return methods_of(text)
        found = [] if text.strip() == NONE else list(named_in(read(text)))
        for named in found:
            file = file_knob(named)
            if file is not None:
                raise ValueError(
                    f"{named.name} reads a file ({file}), which a request may not name; the server can offer it: "
                    f'"also": ["{text}"] in its settings'
                )
        check_text(text)
        methods = methods_of(text)
        lacking = {
            "looks at the vision tower, which this server does not watch": bool(
                set(tower_of(methods)) - set(self.tower)
            ),
            "weighs tokens (weigh=), for which this server's keys have no room": weighs(text)
            and not self.weighs,
            "drops tokens while decoding, for which this server is not prepared": (
                drops_while_decoding(text) and not self.decodes
            ),
        }
        for reason, there in lacking.items():
            if there:
                raise ValueError(
                    f'{text} {reason}; the server can offer it: "also": ["{text}"] in its settings'
                )
        return methods


def file_knob(named: Named) -> str | None:
    """The knob of a method that takes a file or a folder, or None."""
    if named.name not in factories():
        return None  # a ranking, or a mistake that `parse` reports
    for knob, (kind, _) in knobs(named.name).items():
        kinds = get_args(kind) or (kind,)
        if str in kinds:
            return knob
    return None


@lru_cache(maxsize=256)
def methods_of(text: str) -> tuple[Method, ...]:
    """The methods that `text` names; none for "none"."""
    return () if text.strip() == NONE else tuple(parse(text))


@lru_cache(maxsize=256)  # settings are read again for every request
def check_text(text: str) -> None:
    """Raises ValueError unless `text` names methods that can be right inside vLLM."""
    for method in methods_of(text):
        check_method(method)


def check_method(method: Method) -> None:
    """Raises ValueError where vLLM does not give what a method needs, whatever the model."""
    if isinstance(method.schedule, LearnedRate) and method.schedule.semantics == "recompute":
        raise ValueError(
            f"{method.name} runs without a KV cache (semantics=recompute), which vLLM always has; take "
            "semantics=cached, or run it with foveate.apply"
        )


@lru_cache(maxsize=256)
def weighs(text: str) -> bool:
    """Whether kept tokens weigh by some of the methods that `text` names."""
    return any(method.weigh is not None for method in methods_of(text))


@lru_cache(maxsize=256)
def drops_while_decoding(text: str) -> bool:
    """Whether some method that `text` names drops tokens while decoding, or does not say that it does not."""
    return any(method.drops_later(DEEPEST) for method in methods_of(text))


def check_depth(text: str, layers: int, family: str) -> None:
    """Raises ValueError where a method does not fit a decoder of so many layers."""
    for method in methods_of(text):
        method.check(layers, family)


def tower_of(methods: tuple[Method, ...]) -> tuple[Layer, ...]:
    """Layers of the vision tower at which methods look."""
    return tuple(layer for method in methods for layer in method.needs.tower)
