"""vLLM's schedulers, which run a prompt whole or not at all.

Without chunked prefill vLLM still splits a prompt before a picture that its vision tower has no
room for in this step. Methods decide on whole prompts, so such a prompt waits for the next step.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler


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
        scheduled: Any = super()._try_schedule_encoder_inputs(  # type: ignore[misc]
            request, num_computed_tokens, num_new_tokens, encoder_compute_budget, *args, **kwargs
        )
        if scheduled[1] == num_new_tokens:
            return scheduled
        return [], 0, encoder_compute_budget, [], []


class WholePrompts(_Whole, Scheduler):
    """vLLM's scheduler."""


class AsyncWholePrompts(_Whole, AsyncScheduler):
    """vLLM's scheduler for steps that overlap."""
