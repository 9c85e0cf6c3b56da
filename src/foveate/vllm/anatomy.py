"""Where the parts of a vLLM model are, and which models the hooks can be right for."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..engine.adapters import Adapter, adapters

LAYER = ("positions", "hidden_states", "residual")  # what a decoder layer is called with


@dataclass(frozen=True)
class Anatomy:
    """The parts of a model.

    Attributes:
        layers: of the decoder, in order.
        attentions: vLLM's attention of each.
        heads: width of a head in each; attention's own may be wider where keys carry a bias.
        adapter: what the other engine knows of the family, or None.
        config: of transformers.
    """

    layers: tuple[Any, ...]
    attentions: tuple[Any, ...]
    heads: tuple[int, ...]
    adapter: Adapter | None
    config: Any

    def head_size(self, index: int) -> int:
        """Width of a head of a layer, as the model has it."""
        return self.heads[index]

    def key_heads(self, index: int) -> int:
        """Key heads of a layer, of all ranks of a tensor-parallel model together."""
        attention = self.layers[index].self_attn
        return int(getattr(attention, "total_num_kv_heads", attention.attn.num_kv_heads))

    @property
    def per_image(self) -> int | None:
        """Visual tokens of every image where the configuration fixes them."""
        return None if self.adapter is None else self.adapter.per_image(self.config)

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of every image's tokens, where they form such a grid."""
        return None if self.adapter is None else self.adapter.grid(self.config)


def anatomy_of(
    model: Any, config: Any, length: int, backends: Collection[str] | None = None
) -> Anatomy:
    """The anatomy of a live model.

    Args:
        model: as vLLM loaded it.
        config: of transformers.
        length: the longest sequence that vLLM will run (max_model_len).
        backends: of attention, that will do; None if any will.

    Raises:
        ValueError: hooks could not be right on it.
    """
    name = type(model).__name__
    if not hasattr(model, "get_language_model"):
        raise ValueError(f"{name} takes no pictures, so foveate has no visual tokens to keep")
    layers = _layers(model.get_language_model())
    if layers is None:
        raise ValueError(f"the language model of {name} has no stack of layers with self_attn.attn")
    for layer in layers:
        _check_layer(name, layer)
    attentions = tuple(layer.self_attn.attn for layer in layers)
    for attention in attentions:
        _check_attention(name, attention, length, backends)
    heads = tuple(attention.head_size for attention in attentions)
    return Anatomy(layers, attentions, heads, adapters().get(config.model_type), config)


def _layers(language: Any) -> tuple[Any, ...] | None:
    """The decoder's layers: the first stack of which all attend."""
    stacks = (part for part in language.modules() if isinstance(part, nn.ModuleList) and len(part))
    return next((tuple(s) for s in stacks if all(_attends(layer) for layer in s)), None)


def _attends(layer: Any) -> bool:
    attention = getattr(getattr(layer, "self_attn", None), "attn", None)
    return hasattr(attention, "layer_name") and hasattr(attention, "impl")


def _check_layer(name: str, layer: Any) -> None:
    """Raises ValueError unless a layer takes rows alone, in the way of Llama's."""
    taken = {
        key: parameter
        for key, parameter in inspect.signature(type(layer).forward).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD and key != "self"
    }
    needed = [key for key, parameter in taken.items() if parameter.default is parameter.empty]
    known = set(needed) <= set(LAYER) <= set(taken) and tuple(taken)[: len(LAYER)] == LAYER
    if not known or not hasattr(layer, "input_layernorm"):
        raise ValueError(
            f"the decoder layers of {name} ({type(layer).__name__}) take {', '.join(taken)}; foveate knows layers that "
            f"take {', '.join(LAYER)}, after an input_layernorm"
        )


def _check_attention(
    name: str, attention: Any, length: int, backends: Collection[str] | None
) -> None:
    """Raises ValueError where attention depends on more than which keys there are, in order."""
    backend = attention.attn_backend.get_name()
    if backends is not None and backend not in backends:
        raise ValueError(
            f"the attention backend is {backend}; supported inside the decoder are {', '.join(backends)}"
        )
    window = attention.sliding_window
    reasons = {
        f"a sliding window of {window} tokens, which would be counted over the tokens that are left (a "
        f"--max-model-len of at most {window} has no windows)": window is not None
        and window < length,
        "images that see both ways": bool(attention.use_mm_prefix),
        "biases by distance (ALiBi)": getattr(attention.impl, "alibi_slopes", None) is not None,
        "attention sinks": bool(getattr(attention, "has_sink", False)),
        "a KV cache shared between layers": attention.kv_sharing_target_layer_name is not None,
    }
    for reason, there in reasons.items():
        if there:
            raise ValueError(f"{name} has {reason}, which foveate does not support inside vLLM")
