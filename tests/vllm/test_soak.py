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
from speaking import Prompt, engine, in_steps, prompt, request, shut_down

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default::FutureWarning"),  # see test_exact.py
]
METHODS = (
    "none", "fastv:layer=2,keep=0.25", "divprune:keep=0.5", "pdrop:keep=0.5", "visionzip:keep=8", "tome", "dart",
)  # fmt: skip
WARM_UP, REQUESTS, AT_ONCE = 2400, 4800, 24
SLACK = 16 * 2**20  # bytes: allocators keep some pages more or less


@pytest.fixture(scope="module")
def llm(saved: Path) -> Iterator[Any]:
    made = engine(tiny.save("llava", saved / "soaked"), list(METHODS[1:]))
    yield made
    shut_down(made)


def live_of(llm: Any) -> Any:
    """The plugin's `Live` on the engine's only runner."""
    worker = llm.llm_engine.model_executor.driver_worker.worker
    return worker.model_runner._model_forward.__self__


def entries(live: Any) -> int:
    """Entries in all that the plugin keeps by request, picture or step."""
    owners = [owner for owner in (live, live.tower_watch) if owner is not None]
    kept = (value for owner in owners for value in vars(owner).values())
    return sum(len(value) for value in kept if isinstance(value, dict | list))


def memory() -> int:
    """Bytes of this process that lie in memory now."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed goes back to the system first
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def soak(llm: Any, count: int, most: list[int], first: int) -> int:
    """Runs so many short requests, `AT_ONCE` at a time. Every tenth is aborted; every third has no picture.

    Returns how many were answered.
    """
    core, numbers, answered = llm.llm_engine, iter(range(first, first + count)), 0
    running: dict[str, int] = {}
    while True:
        for number in itertools.islice(numbers, AT_ONCE - len(running)):
            method = METHODS[number % len(METHODS)]
            # Pictures come again, so that vLLM's caches fill and lose entries.
            one = (
                prompt("llava", number % 97, method) if number % 3 else Prompt("w5 w6", (), method)
            )
            given, params = request(one, max_tokens=1 + number % 3)
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
        most.append(entries(live_of(llm)))


def test_nothing_is_left_of_requests(llm: Any) -> None:
    most: list[int] = []
    soak(llm, WARM_UP, most, 0)
    before, held = memory(), entries(live_of(llm))
    middles = []
    answered = 0
    for part in range(5):
        share = REQUESTS // 5
        answered += soak(llm, share, most, WARM_UP + part * share)
        middles.append(memory() - before)
    # The last requests' end reaches the worker with the next step.
    in_steps(llm, [Prompt("w5 w6", (), "none")], [0])
    left = entries(live_of(llm))
    print(
        f"{REQUESTS} requests, {answered} answered; entries: {max(most)} at most, {held} after the warm-up, {left} at "
        f"the end; memory grew by {[round(grown / 2**20, 1) for grown in middles]} MB"
    )
    assert answered >= 0.85 * REQUESTS
    assert len(live_of(llm).requests) <= 1
    assert left <= held + AT_ONCE
    assert middles[-1] < SLACK, middles
