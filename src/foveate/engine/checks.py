"""What the engine must not be applied to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from ..core.method import Method
from ..core.tokens import Kind
from ..core.tower import Layer
from .adapters import Adapter
from .assumptions import check_assumptions, checkpointing_off, missing, takes_flex
from .attention.flash import why_not
from .attention.masks import STATIC, SUPPORTED
from .cache.ledger import Ledger
from .decoders import PROVEN
from .modules import decoder_of
from .tower.form import known_tower


def check_model(model: Any, body: Any, adapter: Adapter) -> None:
    """Raises ValueError where the engine could not be right."""
    decoder = decoder_of(body)
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
    _check_decoder(body, decoder)
    check_assumptions(body, decoder)
    if backend.startswith("flash") and _counts_tokens(adapter, decoder.config):
        raise ValueError(
            f"{body.config.model_type} has sliding windows, images that see both ways or queries scaled by position, "
            f"which {backend} would count over the tokens that are left; call model.set_attn_implementation('sdpa')"
        )
    stacked = (
        getattr(getattr(body.config, "vision_config", None), "deepstack_visual_indexes", None) or ()
    )
    if len(stacked) >= len(decoder.layers):
        raise ValueError(
            f"DeepStack has {len(stacked)} levels for {len(decoder.layers)} layers; supported are fewer than layers"
        )
    check_call(decoder, None, None)
    settings = getattr(model, "generation_config", None)
    kind = getattr(settings, "cache_implementation", None)
    if kind not in (None, "dynamic", "static"):
        raise ValueError(
            f"generation_config.cache_implementation is {kind!r}; supported are None (dynamic) and 'static'"
        )


def check_static(methods: Sequence[Method], depth: int, backend: str) -> None:
    """Raises ValueError where decode steps over a static cache could not be right: nothing of the
    engine runs in them.
    """
    late = [method.name for method in methods if method.decides_later(depth)]
    if late:
        raise ValueError(
            f"{late[0]} decides in decode steps, which run without the engine where the cache is static; use a "
            "dynamic cache (leave out cache_implementation), or let it decide in the prefill alone (dyrate: "
            "decode=false)"
        )
    if backend not in STATIC:
        raise ValueError(
            f"a static cache under foveate.apply needs attention by {' or '.join(STATIC)}, whose masks can differ "
            f"from layer to layer, and this is {backend}; call model.set_attn_implementation('sdpa'), or use a "
            "dynamic cache"
        )


def check_tower(body: Any, layers: Sequence[Layer]) -> None:
    """Raises ValueError where methods could not look at these layers of the vision tower."""
    if not layers:
        return
    form = known_tower(body)
    for layer in layers:
        form.index(layer)
    language = set(decoder_of(body).modules())
    if any(_compiled(part) for part in body.modules() if part not in language):
        raise ValueError(
            "a method looks at the vision tower, which is compiled with torch.compile, and so skips the engine's "
            "hooks; pass the plain tower, or use a method that needs none, such as divprune"
        )


def check_weights(decoder: Any, methods: Sequence[Method]) -> None:
    """Raises ValueError where attention could not add what kept tokens weigh."""
    weighing = [method.name for method in methods if method.weigh is not None]
    if not weighing or not str(decoder.config._attn_implementation).startswith("flash"):
        return
    head = decoder.layers[0].self_attn.head_dim
    reason = why_not(head, getattr(decoder.config, "attn_logit_softcapping", None))
    if reason is not None:
        raise ValueError(f"{weighing[0]} adds a bias to attention; {reason}, or leave out weigh=")


def check_whole_images(known: Ledger, visual: Bool[Tensor, "B T"], per_image: int | None) -> None:
    """Refuses a prompt that comes in pieces (chunked prefill) where an image is cut through.

    A method decides about an image when its tokens come, so it would decide about each part of it.

    Args:
        known: the conversation before this forward.
        visual: the columns of this forward.
        per_image: visual tokens of every image, where they are known: images may touch then.

    Raises:
        ValueError: the last column so far and the first of this forward are of one image.
    """
    cut = known.tokens.with_responses(known.columns).are(Kind.IMAGE)[:, -1] & visual[:, 0]
    if per_image:
        cut = cut & (known.total % per_image != 0)
    if bool(cut.any()):
        raise ValueError(
            "an image came in two pieces (chunked prefill), and a method decides about whole images. Give the prompt "
            "at once (prefill_chunk_size=None), or let the pieces end between images"
        )


def _compiled(part: Any) -> bool:
    """Whether torch.compile was put on a module, in any of the ways there are."""
    forward = getattr(part, "forward", None)
    return (
        hasattr(part, "_orig_mod")
        or getattr(part, "_compiled_call_impl", None) is not None
        or hasattr(forward, "_torchdynamo_orig_callable")
    )


def backends(adapter: Adapter, decoder: Any) -> list[str]:
    """Attention implementations that a decoder may be run with."""
    flash = not _counts_tokens(adapter, decoder.config)
    taken = {
        "flash_attention_2": flash,
        "flash_attention_3": flash,
        "flex_attention": takes_flex(decoder),
    }
    return [name for name in SUPPORTED if taken.get(name, True)]


def _counts_tokens(adapter: Adapter, config: Any) -> bool:
    """Whether attention depends on more than rotations and causal order, which flash attention's
    kernels count anew.
    """
    scaled = "llama_4_scaling_beta" in (getattr(config, "rope_parameters", None) or {})
    return scaled or special_masks(adapter, config)


def special_masks(adapter: Adapter, config: Any) -> bool:
    """Whether who sees whom is more than causal order: windows in some layers, or images that see
    both ways.
    """
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        windows = (
            getattr(config, "use_sliding_window", True)
            and getattr(config, "sliding_window", None) is not None
        )
    else:
        windows = "sliding_attention" in kinds
    return adapter.own_masks or bool(windows)


def _check_decoder(body: Any, decoder: Any) -> None:
    """Raises ValueError unless the decoder is one of those whose attention rows the engine is
    proven to recompute.
    """
    config = decoder.config
    odd = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if odd:
        raise ValueError(
            f"the language model ({config.model_type}) has layers of {', '.join(sorted(odd))}, through which dropping "
            "a token changes its neighbours; supported are full attention and sliding windows in every layer"
        )
    if config.model_type not in PROVEN:
        lack = next(missing(body, decoder), None)
        raise ValueError(
            f"nobody has proven the engine right for the decoder {config.model_type!r}"
            f"{'' if lack is None else f' ({lack})'}; proven are {', '.join(PROVEN)}"
        )


def check_call(decoder: Any, positions: Tensor | None, padding: Tensor | None) -> None:
    """Raises ValueError where one call of the decoder could not be right.

    Args:
        decoder: the language model.
        positions: (B T), M-RoPE's (3 B T), or (4 B T) with those of the text first.
        padding: (B C), 1 for what is real.
    """
    if any(getattr(part, "gradient_checkpointing", False) for part in (decoder, *decoder.layers)):
        raise ValueError(
            "gradient checkpointing runs every layer twice, which would drop tokens twice; "
            f"call {checkpointing_off(decoder)} first"
        )
    if positions is not None and positions.ndim == 3 and positions.shape[0] == 4:
        positions = positions[0]
    if positions is None or positions.ndim != 2 or positions.shape[1] < 2:
        return
    back = positions[:, 1:] < positions[:, :-1]
    if padding is not None and padding.shape[1] >= positions.shape[1]:
        real = padding[:, -positions.shape[1] :].bool()
        back = back & real[:, 1:] & real[:, :-1]
    if bool(back.any()):
        raise ValueError(
            "position_ids go back within a sample, as in packed sequences, which are not supported under "
            "foveate.apply; give every sequence a row of its own"
        )
