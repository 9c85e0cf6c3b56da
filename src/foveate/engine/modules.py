"""Where the parts of a vision-language model are in its tree of modules, by the names that transformers gives them."""

from __future__ import annotations

from typing import Any

TOWERS = ("vision_tower", "vision_model", "visual", "vision_encoder", "image_tower")
PROJECTORS = ("multi_modal_projector", "connector", "merger", "aligner", "vision_projection")


def unwrapped(model: Any) -> Any:
    """The model inside a PEFT wrapper, or the model itself."""
    inner = getattr(model, "get_base_model", None)
    return model if inner is None else inner()


def multimodal_body(model: Any) -> Any:
    """The module that merges image features into the text and calls the language model."""
    inner = getattr(model, "model", None)
    return inner if hasattr(inner, "language_model") or hasattr(inner, "text_model") else model


def decoder_of(body: Any) -> Any:
    """The language model inside a multimodal body: Idefics and its kin call it `text_model`."""
    inner = getattr(body, "language_model", None)
    return body.text_model if inner is None else inner


def first_of(module: Any, names: tuple[str, ...]) -> Any:
    """The first of `names` that the module has, or None."""
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)


def tower_of(body: Any) -> Any:
    """The vision tower, or None where it goes by no known name."""
    return first_of(body, TOWERS)


def projectors_of(body: Any) -> tuple[Any, ...]:
    """All that runs once per visual token: the projector, Qwen3-VL's for DeepStack, GLM's convolution before it."""
    more = [getattr(tower_of(body), name, None) for name in ("deepstack_merger_list", "downsample")]
    return tuple(part for part in (projector_of(body), *more) if part is not None)


def projector_of(body: Any, names: tuple[str, ...] = PROJECTORS) -> Any:
    """What makes the decoder's tokens of the tower's output: beside the tower, or inside it (Qwen); None if unnamed."""
    parts = (first_of(part, names) for part in (body, tower_of(body)))
    return next((part for part in parts if part is not None), None)
