"""Thousands of short requests: what is known of a request goes when it ends, and memory does not grow."""

from __future__ import annotations

import ctypes
import gc
import itertools
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from speaking import Prompt, engine, in_steps, prompt, request, shut_down, whole_vllm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default::FutureWarning"),  # see test_exact.py
]
INSIDE = (
    "fastv:layer=2,keep=0.25", "divprune:keep=0.25,weigh=nearest,merge=mean", "pdrop:keep=0.5", "visionzip:keep=8",
    "tome", "st3:every=2,horizon=4",
)  # fmt: skip
BEFORE = ("divprune:keep=0.5", "divprune:keep=0.25,weigh=nearest,merge=mean", "visionzip:keep=8")
WARM_UP, REQUESTS, AT_ONCE = 2400, 4800, 24
SLACK = 16 * 2**20  # bytes: allocators keep some pages more or less


@pytest.fixture(params=["inside", "before"])
def served(request: pytest.FixtureRequest, saved: Path) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """An engine, and methods that its requests may choose."""
    folder = tiny.save("llava", saved / f"soaked-{request.param}")
    methods, start = {"inside": (INSIDE, engine), "before": (BEFORE, whole_vllm)}[request.param]
    llm = start(folder, list(methods))
    yield llm, ("none", *methods)
    shut_down(llm)


def entries(llm: Any) -> int:
    """Entries in all that the plugin keeps by request, picture or step: its scheduler, and its only worker."""
    runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
    count = len(llm.llm_engine.engine_core.engine_core.scheduler._kept)
    owners, seen = [runner._model_forward.__self__], set()
    while owners:
        owner = owners.pop()
        seen.add(id(owner))
        for value in vars(owner).values():
            if isinstance(value, dict | list | set):
                count += len(value)
            elif type(value).__module__.startswith("foveate.vllm") and id(value) not in seen:
                owners.append(value)
    return count


def memory() -> int:
    """Bytes of this process that lie in memory now."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed goes back to the system first
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def soak(llm: Any, methods: tuple[str, ...], numbers: range, most: list[int]) -> int:
    """Runs so many short requests, `AT_ONCE` at a time. Every tenth is aborted; every third has no picture.

    Returns how many were answered.
    """
    core, coming, answered = llm.llm_engine, iter(numbers), 0
    running: dict[str, int] = {}
    while True:
        for number in itertools.islice(coming, AT_ONCE - len(running)):
            method = methods[number % len(methods)]
            # Pictures come again, so that vLLM's caches fill and lose entries.
            one = (
                prompt("llava", number % 97, method) if number % 3 else Prompt("w5 w6", (), method)
            )
            given, params = request(one, max_tokens=1 + number % 4)
            core.add_request(str(number), given, params)
            running[str(number)] = number
        if not running:
            return answered
        for output in core.step():
            if output.finished and running.pop(output.request_id, None) is not None:
                answered += 1
        for name in [name for name, number in running.items() if number % 10 == 0]:
            core.abort_request([name])
            del running[name]
        most.append(entries(llm))


def test_nothing_is_left_of_requests(served: tuple[Any, tuple[str, ...]]) -> None:
    llm, methods = served
    most: list[int] = []
    soak(llm, methods, range(WARM_UP), most)
    before, held, grown, answered = memory(), entries(llm), [], 0
    share = REQUESTS // 5
    for first in range(WARM_UP, WARM_UP + REQUESTS, share):
        answered += soak(llm, methods, range(first, first + share), most)
        grown.append((memory() - before) / 2**20)
    # The last requests' end reaches the worker with the next step.
    in_steps(llm, [Prompt("w5 w6", (), "none")], [0])
    left = entries(llm)
    print(
        f"{REQUESTS} requests, {answered} answered; entries: {max(most)} at most, {held} after the warm-up, {left} at "
        f"the end; memory grew by {', '.join(f'{size:.1f}' for size in grown)} MB"
    )
    assert answered >= 0.85 * REQUESTS
    assert max(most) < held + 4 * AT_ONCE
    assert left <= held + AT_ONCE
    assert grown[-1] * 2**20 < SLACK, grown
