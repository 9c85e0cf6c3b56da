"""vLLM's schedulers, with what Foveate adds to them.

Inside the decoder a prompt runs whole or not at all. Without chunked prefill vLLM still splits a
prompt before a picture that its vision tower has no room for in this step. Methods decide on whole
prompts, so such a prompt waits for the next step.

After a preemption vLLM runs prompt and answer again at once. Where a method decides while decoding,
each token of the answer must again find what was left before it. So such an answer runs again token
by token.

In both ways a response says how many visual tokens were kept. vLLM has one field of a response that
a scheduler can fill: `kv_transfer_params`.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from .before import Shortening, stretch_of
from .report import NEWS, Held
from .settings import KEY, Settings, drops_while_decoding


class _Reports:
    """Goes before a scheduler of vLLM's: responses say what was kept."""

    @cached_property
    def _kept(self) -> dict[str, Held]:
        """By request, as workers report it."""
        return {}

    def update_from_output(self, scheduled: Any, output: Any) -> Any:
        """As vLLM's, after workers' news of what requests hold."""
        news: dict[str, Held] = getattr(output, NEWS, {})
        self._kept.update({name: kept for name, kept in news.items() if name in self.requests})  # type: ignore[attr-defined]
        return super().update_from_output(scheduled, output)  # type: ignore[misc]

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """As vLLM's, with what was kept among the parameters of the response."""
        params, others = super()._free_request(request, *args, **kwargs)  # type: ignore[misc]
        kept = self._kept.pop(request.request_id, None) or _of_pictures(request)
        return (params if kept is None else {**(params or {}), KEY: kept.said}), others


def _of_pictures(request: Any) -> Held | None:
    """What is left of shortened pictures; None of a request that has none."""
    total, kept = 0, 0
    for feature in request.mm_features or []:
        cut = Shortening.of(feature.identifier)
        if cut is not None:
            total, kept = total + cut.total, kept + stretch_of(feature.mm_position).total
    return Held(total, (kept,)) if total else None


class _Whole(_Reports):
    """Goes before a scheduler of vLLM's: prompts run whole."""

    def _try_schedule_encoder_inputs(
        self,
        request: Any,
        num_computed_tokens: int,
        num_new_tokens: int,
        encoder_compute_budget: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As vLLM's, with no tokens at all where it would take a part."""
        if self._decides_while_decoding(request):
            left = request.num_prompt_tokens - num_computed_tokens
            num_new_tokens = min(num_new_tokens, left if left > 0 else 1)
        scheduled: Any = super()._try_schedule_encoder_inputs(  # type: ignore[misc]
            request, num_computed_tokens, num_new_tokens, encoder_compute_budget, *args, **kwargs
        )
        if scheduled[1] == num_new_tokens:
            return scheduled
        return [], 0, encoder_compute_budget, [], []

    @cached_property
    def _settings(self) -> Settings | None:
        return Settings.of(self.vllm_config.additional_config)  # type: ignore[attr-defined]

    def _decides_while_decoding(self, request: Any) -> bool:
        params = request.sampling_params
        if self._settings is None or params is None:
            return False
        return drops_while_decoding(self._settings.chosen(params.extra_args))


class WholePrompts(_Whole, Scheduler):
    """For the way "inside"."""


class AsyncWholePrompts(_Whole, AsyncScheduler):
    """For the way "inside", with steps that overlap."""


class ShortPrompts(_Reports, Scheduler):
    """For the way "before"."""


class AsyncShortPrompts(_Reports, AsyncScheduler):
    """For the way "before", with steps that overlap."""
