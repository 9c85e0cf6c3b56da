"""Wall-clock time of a generation: to the first token, and per token after it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import CompileConfig
from transformers.generation.streamers import BaseStreamer

from ..core.method import Method
from ..engine.apply import apply
from ..engine.trace import Trace


class Stopwatch(BaseStreamer):
    """Notes when tokens arrive; pass it as `streamer`. On a GPU it waits for the device at each token.

    Args:
        device: of the model.
        then: another streamer, which is given all that this one is given.
    """

    def __init__(self, device: torch.device, then: BaseStreamer | None = None) -> None:
        self.device = device
        self.then = then
        self.times: list[float] = []
        self.begin = self._now()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def put(self, value: Tensor) -> None:
        """Called with the prompt, then with every token."""
        self.times.append(self._now())
        if self.then is not None:
            self.then.put(value)

    def end(self) -> None:
        """Called when generation stops."""
        if self.then is not None:
            self.then.end()


@dataclass(frozen=True)
class Timed:
    """One generation: its new token ids (of the first sample), seconds to the first token, mean seconds per further
    one, and the trace.
    """

    ids: list[int]
    first: float
    further: float
    trace: Trace | None


def compiled(device: torch.device) -> dict[str, Any]:
    """What `generate` is given for a static cache and a compiled decode step, of fixed shapes.

    transformers compiles on accelerators alone unless it is told otherwise; the setting has no other name.
    """
    config = CompileConfig(dynamic=False)
    config._compile_all_devices = device.type == "cpu"
    return {"cache_implementation": "static", "compile_config": config}


@torch.inference_mode()
def generate_timed(
    model: Any,
    inputs: dict[str, Tensor],
    methods: Sequence[Method | str] | None,
    max_new_tokens: int,
    streamer: BaseStreamer | None = None,
    least: int = 0,
    static: bool = False,
) -> Timed:
    """Greedy generation of a batch. `methods` None runs the plain model, untouched and with its own cache.

    `streamer` is given the tokens as they come. No answer ends before `least` tokens. With `static`
    the cache is static and transformers compiles the decode step.
    """
    watch = Stopwatch(model.device, streamer)
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "do_sample": False,
        "streamer": watch,
    }
    if static:
        options |= compiled(model.device)
    if least:
        options["min_new_tokens"] = least
    trace = None
    if methods is None:
        out = model.generate(**inputs, **options)
    else:
        with apply(model, *methods) as trace:
            out = model.generate(**inputs, **options)
    arrivals = watch.times[1:]
    further = (
        (arrivals[-1] - arrivals[0]) / (len(arrivals) - 1) if len(arrivals) > 1 else float("nan")
    )
    return Timed(
        out[0, inputs["input_ids"].shape[1] :].tolist(), arrivals[0] - watch.begin, further, trace
    )
