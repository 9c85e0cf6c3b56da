"""Where the time of a generation goes: tower, prefill, steps, and in them ranking, schedules and dropping."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..core.contract import Merge, Schedule, Score
from ..core.method import Method
from ..core.view import View
from ..engine.anatomy import anatomy_of
from ..engine.apply import apply

PARTS = ("vision", "prefill", "decode", "score", "schedule", "drop", "control")


class Clock:
    """Adds up time by part: CUDA events on a GPU, read at the end; the wall clock on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.spans: dict[str, list[tuple[Any, Any]]] = defaultdict(list)

    def now(self) -> Any:
        """A moment, in the device's own order of work."""
        if not self.cuda:
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def add(self, part: str, begin: Any) -> None:
        """Time from `begin` to now belongs to `part`."""
        self.spans[part].append((begin, self.now()))

    def seconds(self) -> dict[str, float]:
        """Sums by part; waits for the device."""
        if self.cuda:
            torch.cuda.synchronize()
        return {
            part: sum(self._between(a, b) for a, b in spans) for part, spans in self.spans.items()
        }

    def _between(self, begin: Any, end: Any) -> float:
        return float(begin.elapsed_time(end)) * 1e-3 if self.cuda else float(end - begin)


@dataclass(frozen=True)
class ClockedScore(Score):
    """A score whose calls are timed."""

    inner: Score
    clock: Clock

    def __call__(self, view: View, counts: Int[Tensor, B]) -> Float[Tensor, "B N"]:
        """The inner one's."""
        begin = self.clock.now()
        out = self.inner(view, counts)
        self.clock.add("score", begin)
        return out


@dataclass(frozen=True)
class ClockedSchedule(Schedule):
    """A schedule whose calls are timed."""

    inner: Schedule
    clock: Clock

    def __call__(self, view: View) -> Int[Tensor, B]:
        """The inner one's."""
        begin = self.clock.now()
        out = self.inner(view)
        self.clock.add("schedule", begin)
        return out


@dataclass(frozen=True)
class ClockedMerge(Merge):
    """The merge of a method whose score is timed: it goes on from what the inner score finds."""

    inner: Merge
    score: Score

    @property
    def follows(self) -> Score | None:
        """The timed score, where the merge needs its own."""
        return None if self.inner.follows is None else self.score

    def __call__(
        self, view: View, keep: Bool[Tensor, "B N"], counts: Int[Tensor, B]
    ) -> Float[Tensor, "B N D"]:
        """The inner one's."""
        return self.inner(view, keep, counts)


@torch.inference_mode()
def parts(
    model: Any, inputs: dict[str, Tensor], methods: Sequence[Method], new_tokens: int
) -> dict[str, float]:
    """Seconds of one generation by part.

    "vision" is tower and projector; "prefill" and "decode" the decoder's forwards, what follows included; "score"
    ranks tokens, "schedule" counts them, "drop" is the rest of the engine before a layer: selecting, gathering,
    eviction, masks; "control" is what of these three falls on decode steps. The clock itself costs a little, so these
    do not add up to the times of an undisturbed run.

    Args:
        model: of a supported family.
        inputs: of the model.
        methods: applied meanwhile.
        new_tokens: length of the answer.
    """
    clock = Clock(model.device)
    timed = [_timed(method, clock) for method in methods]
    anatomy = anatomy_of(model)
    decoder = anatomy.decoder
    handles = [hook for part in anatomy.vision for hook in _around(part, clock, lambda: "vision")]
    calls = iter(range(10**9))
    handles += _around(decoder, clock, lambda: "decode" if next(calls) else "prefill")
    try:
        with _before_layers(decoder, clock) as attach, apply(model, *timed):
            attach()
            model.generate(
                **inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False
            )
    finally:
        for handle in handles:
            handle.remove()
    found = dict.fromkeys(PARTS, 0.0) | clock.seconds()
    found["drop"] = max(0.0, found["drop"] - found["score"] - found["schedule"])
    return found


def _timed(method: Method, clock: Clock) -> Method:
    score = ClockedScore(method.score, clock)
    merge = None if method.merge is None else ClockedMerge(method.merge, score)
    return replace(
        method, score=score, schedule=ClockedSchedule(method.schedule, clock), merge=merge
    )


def _around(module: nn.Module, clock: Clock, part: Callable[[], str]) -> list[Any]:
    """Hooks that time a module's forwards."""
    begun: list[Any] = []

    def before(*_: Any) -> None:
        begun.append(clock.now())

    def after(*_: Any) -> None:
        clock.add(part(), begun.pop())

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


@contextmanager
def _before_layers(decoder: Any, clock: Clock) -> Iterator[Callable[[], None]]:
    """Times what runs between two pre-hooks of each layer: one put on now, one when the function is called."""
    begun: list[Any] = []

    def before(*_: Any) -> None:
        begun.append(clock.now())

    def after(*_: Any) -> None:
        begin = begun.pop()
        clock.add("drop", begin)
        if "prefill" in clock.spans:  # which is over
            clock.add("control", begin)

    handles = [layer.register_forward_pre_hook(before) for layer in decoder.layers]

    def attach() -> None:
        handles.extend(layer.register_forward_pre_hook(after) for layer in decoder.layers)

    try:
        yield attach
    finally:
        for handle in handles:
            handle.remove()
