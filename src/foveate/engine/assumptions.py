"""Everything that the engine takes for granted about transformers.

This is the one place that knows the private names of transformers. Transformers renames what is
private to it from release to release. The engine reads and replaces arguments of the decoder and of
its layers, so a name that has changed would not fail: tokens would silently be dropped from a cache
that nobody uses. Therefore every name stands here, with the releases it was seen in, and
`check_assumptions` looks at the classes of the model at hand before anything runs. What only a run
can show is checked in the run: the cache that the engine prepared must be the one that was filled
(`check_filled`), and masks, rotations and outputs must have the form that is expected.

| what | where | held in |
|---|---|---|
| `input_ids`, `inputs_embeds`, `attention_mask` are arguments | the body | 5.17 to 5.24 |
| `inputs_embeds`, `attention_mask` are arguments | the decoder | 5.17 to 5.24 |
| `position_ids`, `use_cache` are arguments | the decoder | 5.17 to 5.24 |
| `hidden_states` comes first | a layer | 5.17 to 5.24 |
| it returns hidden states alone, no tuple | a layer | 5.24 |
| `attention_mask`, `position_embeddings` are arguments | a layer | 5.17 to 5.24 |
| the cache's argument is `past_key_values` | decoder, layer, attention | 5.17 to 5.23 |
| the cache's argument is `cache` | decoder, layer, attention | 5.24 |
| no other argument brings a cache | decoder, layer, attention | 5.17 to 5.24 |
| `last_hidden_state` is a field | the decoder's output | 5.17 to 5.24 |
| the cache is a field, under its argument's name | the decoder's output | 5.17 to 5.24 |
| `q_proj`, `k_proj`, `head_dim`, `scaling`, `config` | attention | 5.17 to 5.24 |
| `apply_rotary_pos_emb(q, k, cos, sin)` | the module of attention | 5.17 to 5.24 |
| `input_layernorm` comes before attention | a layer | 5.17 to 5.24 |
| `deepstack_visual_embeds` is an argument | a DeepStack's decoder | 5.17 to 5.24 |
| `visual_pos_masks` is an argument | a DeepStack's decoder | 5.17 to 5.24 |
| `gradient_checkpointing` says that a layer runs twice | decoder or layer | 5.17 to 5.24 |
| a mask is None, or 2-D (flash attention) or 4-D | what a layer is given | 5.17 to 5.24 |
| a 4-D mask is bool or additive | what a layer is given | 5.17 to 5.24 |
| a `BlockMask` or none, with `position_bias` (B H R S) | flex attention's function | 5.17 to 5.24 |
| none, with `position_bias` (B 1 R S) and `is_causal` | sdpa's function | 5.17 to 5.24 |
| the function that attends is found by `config`'s name | attention, at every call | 5.17 to 5.24 |
| it returns (B R H E) | the function that attends | 5.17 to 5.24 |
| it is given `softcap` where products are capped | the function that attends | 5.17 to 5.24 |
| rotations are cosines and sines (b T E) | what a layer is given | 5.17 to 5.24 |
| the methods that `KeptLayer` overrides exist | `DynamicLayer` | 5.17 to 5.24 |
| `layers`, `offloading`, `layer_class_to_replicate` | `DynamicCache` | 5.17 to 5.24 |
| `layers` of `StaticLayer(max_cache_len)`, and `is_compileable` | `StaticCache` | 5.24 |
| a mask as wide as it, 4-D or in a dict `full_attention` | `generate` with a `StaticCache` | 5.24 |
| the names in `engine/compiled.py` | what compiling leaves on a model | 5.24 |
| `_attn_implementation` names the backend | the text's config | 5.17 to 5.24 |
| `_attn_implementation_internal` sets it | the text's config | 5.17 to 5.24 |
| `_supports_flex_attn` says whether flex may be set | the decoder | 5.17 to 5.24 |
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_args

from packaging.specifiers import SpecifierSet
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from ..versions import TRANSFORMERS, versions


def unsupported(what: str) -> UnsupportedTransformersError:
    """The error for a name that is missing.

    It says what is missing, what is installed, what works, and how to get it.
    """
    version = versions()["transformers"]
    if version in SpecifierSet(TRANSFORMERS):
        return UnsupportedTransformersError(
            f"{what}. transformers {version} is a version that foveate works with, so this model's own code differs "
            "from transformers' decoders. Load it without trust_remote_code, or undo the change of the class"
        )
    return UnsupportedTransformersError(
        f"{what}. transformers {version} is installed; foveate is known to work with {TRANSFORMERS}. "
        f'Install one of these: pip install "transformers{TRANSFORMERS}"'
    )


class UnsupportedTransformersError(ValueError):
    """Transformers, or the model's own code, is not built as the engine takes for granted."""


try:
    from transformers import AttentionInterface, PreTrainedConfig
    from transformers.cache_utils import (
        Cache,
        DynamicCache,
        DynamicLayer,
        DynamicSlidingWindowLayer,
        StaticCache,
        StaticLayer,
    )
except ImportError as error:
    raise ImportError(str(unsupported(str(error).partition(" (")[0]))) from error

CACHE_NAMES = (
    "cache",
    "past_key_values",
)  # the newest first: where a signature has several, older ones are aliases
BODY = ("input_ids", "inputs_embeds", "attention_mask")
DECODER = ("inputs_embeds", "attention_mask", "position_ids", "use_cache")
LAYER = ("hidden_states", "attention_mask", "position_embeddings")
ATTENTION = ("q_proj", "k_proj", "head_dim", "scaling", "config")
ROTARY = ("q", "k", "cos", "sin")
DEEPSTACK = ("deepstack_visual_embeds", "visual_pos_masks")
LAST = "last_hidden_state"
CACHE_LAYER = (
    "lazy_initialization", "update", "get_seq_length", "get_mask_sizes", "reset", "crop", "reorder_cache",
    "batch_repeat_interleave", "batch_select_indices",
)  # fmt: skip
CACHE = ("layers", "offloading", "layer_class_to_replicate", "get_seq_length")


@dataclass(frozen=True)
class Names:
    """What the classes of one model call the things that the engine reads and replaces.

    Attributes:
        body: arguments of the multimodal body, in order.
        decoder: arguments of the decoder, in order.
        cache: the decoder's argument for the KV cache, and the field of its output: what errors
            call it.
        layer_cache: a layer's argument for it.
    """

    body: tuple[str, ...]
    decoder: tuple[str, ...]
    cache: str
    layer_cache: str

    def by_name(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The decoder's arguments, all by name."""
        return {**dict(zip(self.decoder, args, strict=False)), **kwargs}

    def given_cache(self, kwargs: dict[str, Any]) -> Any:
        """The cache that the decoder was called with, by whatever name.

        The newest name counts, as in transformers.
        """
        return next((kwargs[name] for name in (self.cache, *CACHE_NAMES) if name in kwargs), None)

    def with_cache(self, kwargs: dict[str, Any], cache: Any) -> dict[str, Any]:
        """The decoder's arguments with this cache and no other."""
        return {**without_cache(kwargs), self.cache: cache}

    def last_state(self, output: Any) -> Tensor:
        """The decoder's last hidden state.

        Raises:
            UnsupportedTransformersError: the output has none.
        """
        state = output[0] if isinstance(output, tuple) else getattr(output, LAST, None)
        if not isinstance(state, Tensor):
            raise unsupported(f"the decoder's output {type(output).__name__} has no {LAST}")
        return state

    def check_returned(self, output: Any, cache: Any) -> None:
        """Checks that the output carries the cache that the decoder was called with.

        Raises:
            UnsupportedTransformersError: it does not.
        """
        values = output if isinstance(output, tuple) else [getattr(output, self.cache, None)]
        if not any(value is cache for value in values):
            raise unsupported(
                f"the decoder's output {type(output).__name__} has not the cache that it was called with, as a field "
                f"{self.cache!r}"
            )


def without_cache(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments without any for the cache."""
    return {name: value for name, value in kwargs.items() if name not in CACHE_NAMES}


def cache_name(module: Any) -> str:
    """What a module's `forward` calls the KV cache.

    It is "cache", or "past_key_values" before transformers 5.24.

    Raises:
        UnsupportedTransformersError: it takes none under a name that is known, or a second one.
    """
    for missing in _lacks_cache(module):
        raise unsupported(missing)
    taken = _arguments(module)
    return next(name for name in CACHE_NAMES if name in taken)


def names_of(body: Any, decoder: Any) -> Names:
    """The names that hold for one model.

    Raises:
        UnsupportedTransformersError: as `cache_name`.
    """
    return Names(
        body=tuple(_arguments(body)),
        decoder=tuple(_arguments(decoder)),
        cache=cache_name(decoder),
        layer_cache=cache_name(decoder.layers[0]),
    )


def check_assumptions(body: Any, decoder: Any) -> None:
    """Checks a model against this module's table.

    Raises:
        UnsupportedTransformersError: for the first assumption that the model breaks.
    """
    for lack in missing(body, decoder):
        raise unsupported(lack)


def missing(body: Any, decoder: Any) -> Iterator[str]:
    """Every assumption of this module's table that a model breaks, each as a clause."""
    yield from _lacks(body, BODY)
    yield from _lacks(decoder, DECODER)
    if getattr(getattr(body.config, "vision_config", None), "deepstack_visual_indexes", None):
        yield from (f"the tower is a DeepStack, but {lack}" for lack in _lacks(decoder, DEEPSTACK))
    yield from _lacks_cache(decoder)
    yield from _lacks_output(decoder)
    for layer in _kinds(decoder.layers):
        yield from _lacks_layer(decoder, layer)
    yield from (
        f"DynamicLayer has no method {name}"
        for name in CACHE_LAYER
        if not hasattr(DynamicLayer, name)
    )
    cache = DynamicCache()
    yield from (f"DynamicCache has no {name}" for name in CACHE if not hasattr(cache, name))
    if not hasattr(decoder.config, "_attn_implementation"):
        yield f"{type(decoder.config).__name__} has no _attn_implementation"


def _lacks(module: Any, arguments: Sequence[str]) -> Iterator[str]:
    taken = _arguments(module)
    for argument in arguments:
        if argument not in taken:
            yield f"{type(module).__name__}.forward takes no argument {argument!r}"


def _lacks_layer(decoder: Any, layer: Any) -> Iterator[str]:
    name = type(layer).__name__
    first = next(iter(_arguments(layer)), None)
    yield from _lacks(layer, LAYER)
    if first != LAYER[0]:
        yield f"{name}.forward takes {first!r} before {LAYER[0]!r}"
    if not hasattr(layer, "input_layernorm"):
        yield f"{name} has no input_layernorm"
    if not any(hasattr(part, "gradient_checkpointing") for part in (decoder, layer)):
        yield f"{name} does not say by gradient_checkpointing whether it runs twice"
    yield from _lacks_cache(layer)
    yield from _lacks_attention(layer)


def _lacks_cache(module: Any) -> Iterator[str]:
    taken = _arguments(module)
    said = f"{type(module).__name__}.forward"
    if not any(name in taken for name in CACHE_NAMES):
        yield f"{said} takes no KV cache under a name that is known ({' or '.join(CACHE_NAMES)})"
    for name, parameter in taken.items():
        if name not in CACHE_NAMES and _is_cache(parameter.annotation):
            yield f"{said} takes a second KV cache, {name!r}, of which foveate knows nothing"


def _lacks_attention(layer: Any) -> Iterator[str]:
    attention = getattr(layer, "self_attn", None)
    if attention is None:
        yield f"{type(layer).__name__} has no self_attn"
        return
    yield from _lacks_cache(attention)
    for name in ATTENTION:
        if not hasattr(attention, name):
            yield f"{type(attention).__name__} has no {name}"
    rotate = rotary_of(attention)
    module = type(attention).__module__
    if rotate is None:
        yield f"{module} has no apply_rotary_pos_emb"
    elif tuple(inspect.signature(rotate).parameters)[: len(ROTARY)] != ROTARY:
        yield f"{module}.apply_rotary_pos_emb takes other arguments than {', '.join(ROTARY)}"


def rotary_of(attention: Any) -> Any:
    """The function that rotates an attention's queries and keys, or None.

    It stands beside the attention's class; where somebody derived a class of his own, beside its
    base.
    """
    modules = (sys.modules.get(kind.__module__) for kind in type(attention).__mro__)
    rotations = (getattr(module, "apply_rotary_pos_emb", None) for module in modules)
    return next((rotation for rotation in rotations if rotation is not None), None)


def _lacks_output(decoder: Any) -> Iterator[str]:
    """What is missing from the class that the decoder says it returns.

    A class that is not named is checked in the run.
    """
    cache = next((name for name in CACHE_NAMES if name in _arguments(decoder)), CACHE_NAMES[0])
    said = inspect.signature(type(decoder).forward, eval_str=False).return_annotation
    for kind in get_args(said) or (said,):
        if isinstance(kind, type) and is_dataclass(kind):
            known = {field.name for field in fields(kind)}
            for name in (LAST, cache):
                if name not in known:
                    yield f"{type(decoder).__name__} returns a {kind.__name__}, which has no field {name!r}"


def _kinds(layers: Iterable[Any]) -> list[Any]:
    """One layer of each pair of classes, its own and its attention's.

    Looking at more layers would tell nothing new.
    """
    found = {(type(layer), type(getattr(layer, "self_attn", None))): layer for layer in layers}
    return list(found.values())


def _arguments(module: Any) -> dict[str, inspect.Parameter]:
    """The named arguments of a module's class.

    Of the class, since an instance's `forward` may be wrapped (accelerate does so).
    """
    taken = dict(inspect.signature(type(module).forward).parameters)
    taken.pop("self", None)
    return {n: p for n, p in taken.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def _is_cache(annotation: Any) -> bool:
    """Whether an argument is annotated as a cache, alone or among others."""
    kinds = get_args(annotation) or (annotation,)
    return any(isinstance(kind, type) and issubclass(kind, Cache) for kind in kinds) or (
        isinstance(annotation, str) and "Cache" in annotation
    )


def check_filled(name: str, layer: int, held: int, expected: int) -> None:
    """Checks that a layer's cache has grown by what has just run in the layer.

    Raises:
        UnsupportedTransformersError: it has not.
    """
    if held != expected:
        raise unsupported(
            f"layer {layer} was to leave {expected} tokens in its cache, which holds {held}: the cache that foveate "
            f"gave the model as {name!r} is not the one that its attention used"
        )


def check_layer_call(index: int, kwargs: dict[str, Any]) -> None:
    """Checks that a layer is called with rotations and a mask of the known forms.

    Raises:
        UnsupportedTransformersError: it is not.
    """
    rotations = kwargs.get("position_embeddings")
    known = (
        isinstance(rotations, tuple)
        and len(rotations) == 2
        and all(part.ndim == 3 for part in rotations)
    )
    if not known:
        found = (
            "no position_embeddings" if rotations is None else "position_embeddings of another form"
        )
        raise unsupported(
            f"layer {index} was called with {found}; expected cosines and sines (b T E), by name"
        )
    mask = kwargs.get("attention_mask")
    if isinstance(mask, BlockMask):
        return
    if mask is not None and (not isinstance(mask, Tensor) or mask.ndim not in (2, 4)):
        form = (
            f"{mask.ndim} dimensions" if isinstance(mask, Tensor) else f"type {type(mask).__name__}"
        )
        raise unsupported(
            f"layer {index} was called with an attention_mask of {form}; expected 2 or 4 dimensions"
        )


def takes_flex(decoder: Any) -> bool:
    """Whether transformers lets a decoder run flex attention."""
    return bool(getattr(decoder, "_supports_flex_attn", False))


def checkpointing_off(model: Any) -> str:
    """The call that turns gradient checkpointing off; transformers 5.24 has renamed it."""
    new = "activation_checkpointing_disable"
    return f"model.{new if hasattr(model, new) else 'gradient_checkpointing_disable'}()"


__all__ = [
    "CACHE_NAMES", "AttentionInterface", "Cache", "DynamicCache", "DynamicLayer",
    "DynamicSlidingWindowLayer", "Names", "PreTrainedConfig", "StaticCache", "StaticLayer",
    "UnsupportedTransformersError", "cache_name", "check_assumptions", "check_filled",
    "check_layer_call", "checkpointing_off", "missing", "names_of", "rotary_of", "takes_flex",
    "unsupported", "without_cache",
]  # fmt: skip
