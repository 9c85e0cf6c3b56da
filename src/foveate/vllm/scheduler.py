"""vLLM's schedulers, which run a prompt whole or not at all.

Without chunked prefill vLLM still splits a prompt before a picture that its vision tower has no
room for in this step. Methods decide on whole prompts, so such a prompt waits for the next step.

After a preemption vLLM runs prompt and answer again at once. Where a method decides while decoding,
each token of the answer must again find what was left before it. So such an answer runs again token
by token.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from .settings import Settings, drops_while_decoding


class _Whole:
    """Goes before a scheduler of vLLM's."""

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
    """vLLM's scheduler."""


class AsyncWholePrompts(_Whole, AsyncScheduler):
    """vLLM's scheduler for steps that overlap."""
