"""What the engine must not be applied to."""

from __future__ import annotations

import sys
from typing import Any

from .masks import SUPPORTED


def unwrapped(model: Any) -> Any:
    """The model inside a PEFT wrapper, or the model itself."""
    inner = getattr(model, "get_base_model", None)
    return model if inner is None else inner()


def check_model(model: Any, body: Any) -> None:
    """Raises ValueError where the engine could not be right."""
    decoder = body.language_model
    backend = decoder.config._attn_implementation
    if backend not in SUPPORTED:
        raise ValueError(
            f"the language model's attn_implementation is {backend!r}; supported are {', '.join(SUPPORTED)}. "
            "Load the model with one of these, or call model.set_attn_implementation('sdpa')."
        )
    parts = (model, body, decoder, *decoder.layers)
    if any(_compiled(part) for part in parts):
        raise ValueError(
            "the model is compiled with torch.compile, which skips the engine's hooks; pass the plain model"
        )
    _check_layers(decoder)
    check_call(decoder, {})
    settings = getattr(model, "generation_config", None)
    kind = getattr(settings, "cache_implementation", None)
    if kind not in (None, "dynamic"):
        raise ValueError(
            f"generation_config.cache_implementation is {kind!r}, whose size is fixed; set it to None (dynamic)"
        )


def decoder_layers(body: Any) -> Any:
    """The decoder's layers.

    Raises:
        ValueError: the language model is not a stack of `layers`.
    """
    layers = getattr(body.language_model, "layers", None)
    if layers is None:
        raise ValueError(
            f"the language model is a {type(body.language_model).__name__}, which has no `layers`; supported are "
            "decoders like Llama, Mistral, Qwen2 and Qwen3"
        )
    return layers


def _compiled(part: Any) -> bool:
    """Whether torch.compile was put on a module, in any of the ways there are."""
    forward = getattr(part, "forward", None)
    return (
        hasattr(part, "_orig_mod")
        or getattr(part, "_compiled_call_impl", None) is not None
        or hasattr(forward, "_torchdynamo_orig_callable")
    )


def _check_layers(decoder: Any) -> None:
    """Raises ValueError unless all layers are full attention, of the form whose rows the engine can recompute."""
    config = decoder.config
    odd = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    known = getattr(config, "layer_types", None) is not None or not getattr(config, "use_sliding_window", True)
    window = None if known else getattr(config, "sliding_window", None)
    if odd or window:
        what = ", ".join(sorted(odd)) or f"a sliding window of {window}"
        raise ValueError(
            f"the language model ({config.model_type}) has {what}; supported is full attention in every layer. Where "
            "the window is longer than your prompts, set text_config.sliding_window=None and load the model again."
        )
    for layer in decoder.layers:
        attention = getattr(layer, "self_attn", None)
        lacks = [name for name in ("q_proj", "k_proj", "head_dim") if not hasattr(attention, name)]
        lacks += [] if hasattr(layer, "input_layernorm") else ["input_layernorm"]
        rotary = hasattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb")
        lacks += [] if rotary else ["rotary embedding"]
        if lacks or float(getattr(config, "partial_rotary_factor", None) or 1.0) != 1.0:
            raise ValueError(
                f"the layers of the language model ({config.model_type}) are not of the supported form: "
                f"{', '.join(lacks) or 'rotary embedding on a part of each head'}"
                f"{' is missing' if lacks else ''}. Supported are decoders like Llama, Mistral, Qwen2 and Qwen3."
            )


def check_call(decoder: Any, kwargs: dict[str, Any]) -> None:
    """Raises ValueError where one call of the decoder could not be right."""
    if getattr(decoder, "gradient_checkpointing", False):
        raise ValueError(
            "gradient checkpointing runs every layer twice, which would drop tokens twice; "
            "call model.gradient_checkpointing_disable() first"
        )
    positions = kwargs.get("position_ids")
    if positions is None or positions.ndim != 2 or positions.shape[1] < 2:
        return
    back = positions[:, 1:] < positions[:, :-1]
    mask = kwargs.get("attention_mask")
    if mask is not None and mask.ndim == 2 and mask.shape[1] >= positions.shape[1]:
        real = mask[:, -positions.shape[1] :].bool()
        back = back & real[:, 1:] & real[:, :-1]
    if bool(back.any()):
        raise ValueError(
            "position_ids go back within a sample, as in packed sequences, which are not supported under "
            "foveate.apply; give every sequence a row of its own"
        )
