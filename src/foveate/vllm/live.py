"""Foveate on one of vLLM's model runners: its hooks, and what it knows of the requests under way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.forward_context import get_forward_context
from vllm.logger import init_logger

from .anatomy import anatomy_of
from .bias import WideHeads
from .checks import check_config
from .evict import Evict
from .forward import Forward
from .metadata import BACKENDS, Shortened
from .paged import Paged
from .pictures import Pictures
from .report import NEWS, Held
from .rows import Request, Share, request_of
from .settings import Settings, drops_while_decoding, methods_of
from .tower import TowerWatch

logger = init_logger("vllm.foveate")
PICTURES = ("image", "video")
STACKED = "_get_deepstack_input_embeds"  # of a model with DeepStack
RUNNER = (
    "_model_forward", "_on_request_state_removed", "_cache_encoder_output", "_process_encoder_cache_scheduler_output",
    "_init_mrope_positions", "sample_tokens",
    "input_batch", "requests", "query_start_loc", "get_model", "initialize_kv_cache",
)  # fmt: skip


class Live:
    """Hooks on one model runner, and the requests under way.

    Args:
        runner: vLLM's model runner, its model loaded.
        settings: what the server was asked to do.

    Raises:
        ValueError: methods could not be right on this model.
    """

    def __init__(self, runner: Any, settings: Settings) -> None:
        self.runner = runner
        self.settings = settings
        config = runner.model_config
        model = runner.get_model()
        self.anatomy = anatomy_of(model, config.hf_config, config.max_model_len, BACKENDS)
        self.tower_watch = TowerWatch.of(model, config.hf_config, settings.tower)
        self.requests: dict[str, Request] = {}
        self.forward: Forward | None = None
        self.wide: list[WideHeads] | None = None  # of each layer, where keys carry biases
        self.evict: Evict | None = None
        self.news: dict[str, Held] = {}  # of this step, for the scheduler

    def attach(self) -> None:
        """Puts the hooks on, for the life of the process."""
        for index, (layer, attention) in enumerate(
            zip(self.anatomy.layers, self.anatomy.attentions, strict=True)
        ):
            layer.register_forward_pre_hook(_LayerHook(self, index), with_kwargs=True)
            attention.register_forward_pre_hook(_AttentionHook(self, index))
        if self.settings.weighs:
            self.wide = [WideHeads(attention, self._bias) for attention in self.anatomy.attentions]
        if self.settings.decodes:
            self.initialize = self.runner.initialize_kv_cache
            self.runner.initialize_kv_cache = self._initialize_kv_cache
        self.run, self.runner._model_forward = self.runner._model_forward, self._model_forward
        self.sample, self.runner.sample_tokens = self.runner.sample_tokens, self._sample_tokens
        self.removed = self.runner._on_request_state_removed
        self.runner._on_request_state_removed = self._on_request_state_removed
        model = self.runner.get_model()
        if hasattr(model, STACKED):
            setattr(model, STACKED, self._stacked(getattr(model, STACKED)))
        if self.tower_watch is not None:
            self.tower_watch.attach(self.runner)

    def _stacked(self, get: Callable[..., Any]) -> Callable[..., Any]:
        """What gives the decoder its DeepStack features, for the rows that are left."""

        def stacked(*args: Any, **kwargs: Any) -> Any:
            found = get(*args, **kwargs)
            return found if found is None or self.forward is None else Stacked(found, self.forward)

        return stacked

    def _bias(self, rows: int) -> Tensor | None:
        return None if self.forward is None else self.forward.bias

    def _initialize_kv_cache(self, *args: Any, **kwargs: Any) -> None:
        """vLLM's, after which it is known how the cache is laid out."""
        self.initialize(*args, **kwargs)
        paged = Paged.of(
            self.anatomy.attentions, self.anatomy.attentions[0].kv_cache.dtype, self.runner.device
        )
        self.evict = Evict(paged, self.anatomy, self.wide)

    def _on_request_state_removed(self, name: str, state: Any) -> None:
        self.requests.pop(name, None)
        self.removed(name, state)

    def _model_forward(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM's forward of a step, with what methods change about it."""
        shares = self._shares()
        if not any(share.columns is not None or share.request.gone.any() for share in shares):
            return self.run(*args, **kwargs)
        self.forward = Forward(
            self.anatomy,
            shares,
            Shortened(self.runner, len(shares)),
            self.tower_watch,
            self.evict,
        )
        total = int(kwargs["positions"].shape[-1])
        try:
            output = self.forward.finish(self.run(*args, **kwargs), total)
        finally:
            self.forward = None
        for name, share in zip(self.runner.input_batch.req_ids, shares, strict=True):
            if share.columns is not None:
                self.news[name] = share.request.report()
        return output

    def _sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM's, with news for the scheduler in its output."""
        output = self.sample(*args, **kwargs)
        if self.news and output is not None:
            # Where steps overlap, the output is made later, around this one.
            setattr(getattr(output, "_model_runner_output", output), NEWS, self.news)
            self.news = {}
        return output

    def _shares(self) -> list[Share]:
        """The requests of this step, in the order of their rows; none in a dry run."""
        if not get_forward_context().attn_metadata:
            return []
        batch = self.runner.input_batch
        names = batch.req_ids
        starts = self.runner.query_start_loc.np[: len(names) + 1].tolist()
        computed = batch.num_computed_tokens_cpu[: len(names)].tolist()
        return [
            self._share(name, starts[i], starts[i + 1] - starts[i], computed[i])
            for i, name in enumerate(names)
        ]

    def _share(self, name: str, start: int, count: int, before: int) -> Share:
        if before == 0:  # new, or resumed after a preemption: the prompt runs (again)
            self.requests[name] = self._request(name)
        request = self.requests[name]
        share = Share(request, start, count, before + count)
        if request.tokens is None:
            return share
        if before >= request.prompt:
            return self._decoding(share, before)
        if before > 0 or count < request.prompt:
            raise RuntimeError(
                f"vLLM runs columns {before} to {before + count} of a prompt of {request.prompt} apart; "
                "foveate decides on whole prompts"
            )
        share.columns = torch.arange(request.prompt, device=self.runner.device)
        share.pictures = tuple(
            (feature.identifier, columns_of(feature.mm_position).to(self.runner.device))
            for feature in self.runner.requests[name].mm_features
            if feature.modality in PICTURES
        )
        return share

    def _decoding(self, share: Share, before: int) -> Share:
        """A request's part of a decode step, of which its prefill has run `before` tokens or more."""
        step = before - share.request.prompt + 1
        if not share.request.decodes or not share.request.acts(step):
            return share
        if share.count > 1:
            raise RuntimeError(
                f"vLLM runs {share.count} answer tokens of a request in one step; its method decides before each"
            )
        share.step = step
        share.columns = torch.tensor([before], device=self.runner.device)
        return share

    def _request(self, name: str) -> Request:
        state = self.runner.requests[name]
        params = state.sampling_params
        text = self.settings.chosen(None if params is None else params.extra_args)
        return request_of(
            methods_of(text),
            self._visual(state),
            len(self.anatomy.layers),
            self.anatomy.per_image,
            self.anatomy.grid,
            drops_while_decoding(text),
        )

    def _visual(self, state: Any) -> Tensor | None:
        """Which columns of a request's prompt are visual: where vLLM puts what its tower makes."""
        pictures = [f.mm_position for f in state.mm_features if f.modality in PICTURES]
        if not pictures:
            return None
        visual = torch.zeros(state.num_prompt_tokens, dtype=torch.bool)
        visual[torch.cat([columns_of(place) for place in pictures])] = True
        return visual.to(self.runner.device)


class Stacked:
    """DeepStack's features, which the decoder adds after its first layers: of the rows that run by then."""

    def __init__(self, whole: Any, forward: Forward) -> None:
        self.whole = whole
        self.forward = forward

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, name: str) -> Tensor:
        features: Tensor = self.whole[name]
        return features if self.forward.rows is None else features[self.forward.rows]


class _LayerHook:
    """Pre-hook of decoder layer `index`."""

    def __init__(self, live: Live, index: int) -> None:
        self.live = live
        self.index = index

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        forward = self.live.forward
        return None if forward is None else forward.before_layer(self.index, module, args, kwargs)


class _AttentionHook:
    """Pre-hook of the attention of layer `index`, which is called with queries, keys and values."""

    def __init__(self, live: Live, index: int) -> None:
        self.live = live
        self.index = index

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.live.forward is not None:
            self.live.forward.reached(self.index, args[0], args[1])


def columns_of(place: Any) -> Tensor:
    """Columns of a picture's embeddings, from vLLM's `PlaceholderRange`."""
    if place.is_embed is None:
        return torch.arange(place.offset, place.offset + place.length)
    return torch.as_tensor(place.is_embed).nonzero()[:, 0] + place.offset


def attach(worker: Any) -> None:
    """Puts Foveate on a worker whose model has just been loaded, if the configuration asks for it."""
    settings = Settings.of(worker.vllm_config.additional_config)
    if settings is None:
        return
    check_config(worker.vllm_config, settings)
    runner = worker.model_runner
    lacking = [name for name in RUNNER if not hasattr(runner, name)]
    if lacking:
        raise ValueError(
            f"vLLM's {type(runner).__name__} has no {', '.join(lacking)}; use another release"
        )
    if settings.way == "before":
        model, config = runner.get_model(), runner.model_config
        anatomy = anatomy_of(model, config.hf_config, config.max_model_len)
        watch = TowerWatch.of(model, config.hf_config, settings.tower)
        Pictures(runner, anatomy, watch, settings.weighs).attach()
    else:
        Live(runner, settings).attach()
    logger.info(
        "foveate prunes visual tokens %s the decoder: %s by default%s",
        settings.way,
        settings.method,
        f", {', '.join(settings.also)} on request" if settings.also else "",
    )
