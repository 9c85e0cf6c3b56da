"""Which of vLLM's configurations Foveate refuses, and why."""

from __future__ import annotations

from typing import Any

from .before import check_before
from .settings import Settings, Way, check_depth, methods_of

NEEDED: dict[Way, tuple[str, ...]] = {
    "inside": ("--enforce-eager", "--no-enable-chunked-prefill", "--no-enable-prefix-caching"),
    "before": (),
}
"""Flags that `vllm serve` must be started with."""


def check_config(config: Any, settings: Settings) -> None:
    """Raises ValueError where vLLM is configured for something that methods would get wrong.

    Args:
        config: vLLM's `VllmConfig`.
        settings: what Foveate was asked to do.
    """
    odd = [reason for reason, there in reasons(config, settings).items() if there]
    if odd:
        raise ValueError(f"foveate cannot be right inside vLLM with {'; '.join(odd)}")
    model = config.model_config
    if not model.is_multimodal_model:
        raise ValueError(
            f"{model.model} takes no pictures, so foveate has no visual tokens to keep"
        )
    for text in settings.listed:
        if methods_of(text):
            layers = model.hf_text_config.num_hidden_layers
            check_depth(text, layers, model.hf_config.model_type)
            if settings.way == "before":
                check_before(text, layers)


def reasons(config: Any, settings: Settings) -> dict[str, bool]:
    """What Foveate does not support, with what to do about it, and whether it is on."""
    return {**_always(config), **(_inside(config) if settings.way == "inside" else {})}


def _inside(config: Any) -> dict[str, bool]:
    """What hooks in the decoder do not support."""
    compiled = getattr(config.compilation_config.mode, "value", 0)
    return {
        "chunked prefill: methods decide on whole prompts (add --no-enable-chunked-prefill)": bool(
            config.scheduler_config.enable_chunked_prefill
        ),
        "prefix caching: a pruned prefix would serve requests of another method (add --no-enable-prefix-caching)": bool(
            config.cache_config.enable_prefix_caching
        ),
        "a compiled decoder or CUDA graphs, which skip its hooks (add --enforce-eager)": bool(
            compiled
        )
        or not config.model_config.enforce_eager,
    }


def _always(config: Any) -> dict[str, bool]:
    """What neither way supports."""
    cache, parallel = config.cache_config, config.parallel_config
    return {
        "model runner V2 (set VLLM_USE_V2_MODEL_RUNNER=0)": bool(config.use_v2_model_runner),
        "pipeline parallelism: layers of a decision lie in other processes": parallel.pipeline_parallel_size
        > 1,
        "context parallelism, which spreads a request's tokens over processes": (
            getattr(parallel, "decode_context_parallel_size", 1) > 1
            or getattr(parallel, "prefill_context_parallel_size", 1) > 1
        ),
        "expert parallelism, which counts rows": bool(parallel.enable_expert_parallel),
        "microbatches (DBO), which split a step": bool(getattr(parallel, "use_ubatching", False)),
        "speculative decoding: drafts are checked in steps of several tokens": config.speculative_config
        is not None,
        "LoRA, whose kernels know the adapter of each row of a step": config.lora_config
        is not None,
        "a KV connector, which takes all layers of a request to hold the same": config.kv_transfer_config
        is not None,
        "a quantised KV cache (--kv-cache-dtype auto)": cache.cache_dtype
        not in ("auto", "float16", "bfloat16"),
        "a scheduler class of your own": config.scheduler_config.scheduler_cls is not None
        and not ours(config.scheduler_config.scheduler_cls),
        "pooling (embedding) models": config.model_config.runner_type != "generate",
    }


def ours(scheduler: Any) -> bool:
    """Whether a scheduler class, as vLLM's configuration names it, is Foveate's."""
    return isinstance(scheduler, str) and scheduler.startswith("foveate.")


def check_request(settings: Settings | None, params: Any, model: Any = None) -> None:
    """Raises ValueError where a request asks for what its method would get wrong.

    Args:
        settings: of the server; None if it was not asked to do anything.
        params: vLLM's `SamplingParams`.
        model: vLLM's `ModelConfig`; None leaves out whether the method fits the decoder's depth.
    """
    extra = getattr(params, "extra_args", None) or {}
    if settings is None:
        if "foveate" in extra:
            raise ValueError(
                "this request chooses a method of foveate, but the server runs without; start it with "
                """--additional-config '{"foveate": {"method": "none"}}'"""
            )
        return
    text = settings.chosen(extra)
    methods = settings.check_request(text)
    if model is not None:
        check_depth(text, model.hf_text_config.num_hidden_layers, model.hf_config.model_type)
    if methods and getattr(params, "prompt_logprobs", None) is not None:
        raise ValueError(
            "prompt_logprobs of a pruned prompt do not exist where tokens have left; choose foveate=none for them"
        )
