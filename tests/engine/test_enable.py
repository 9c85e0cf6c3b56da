"""Methods without a with block: switched on and off, recorded in bounded memory, shared by threads."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import pipeline

import foveate
from foveate.core.method import Method
from foveate.core.scores import Even
from foveate.cost.flops import cost_of_trace, shapes
from foveate.engine.anatomy import anatomy_of
from foveate.engine.apply import TRACE_LAST
from foveate.engine.trace import Pass, Trace
from foveate.methods import divprune, fastv, vtw
from foveate.world.draw import draw
from foveate.world.scenes import sample
from models import families
from models.prompts import prompt
from models.tiny import batch, model
from oracles.layouts import LAYOUTS, hooks

GREEDY = {"max_new_tokens": 4, "do_sample": False}


def answer(made: Any, inputs: dict[str, Tensor]) -> list[int]:
    return made.generate(**inputs, **GREEDY)[0].tolist()


def test_enable_does_what_apply_does_until_it_is_disabled() -> None:
    made, data = model("llava"), batch("llava", LAYOUTS["one"])
    with torch.no_grad():
        plain, before = made(**data.inputs).logits, hooks(made)
        with foveate.apply(made, fastv(layer=1, keep=0.5)) as trace:
            wanted = made(**data.inputs).logits
        handle = foveate.enable(made, fastv(layer=1, keep=0.5))
        assert handle.enabled and torch.equal(made(**data.inputs).logits, wanted)
        assert handle.trace.kept == trace.kept and not torch.equal(plain, wanted)
        handle.disable()
        handle.disable()  # off is off
        assert not handle.enabled and hooks(made) == before
        assert torch.equal(made(**data.inputs).logits, plain)
        handle.enable()
        assert handle.trace.calls == 0 and torch.equal(made(**data.inputs).logits, wanted)
        foveate.disable(made)
        assert not handle.enabled and torch.equal(made(**data.inputs).logits, plain)


def test_disable_refuses_where_nothing_is_enabled() -> None:
    made = model("llava")
    with pytest.raises(RuntimeError, match="nothing is enabled"):
        foveate.disable(made)
    with foveate.apply(made, fastv()), pytest.raises(RuntimeError, match="with block"):
        foveate.disable(made)
    handle = foveate.enable(made, fastv())
    with pytest.raises(RuntimeError, match=r"foveate\.disable\(model\)"):
        foveate.enable(made, vtw(1))
    with pytest.raises(RuntimeError, match=r"after foveate\.disable"):
        copy.deepcopy(made)
    handle.disable()


def test_what_apply_returns_can_be_entered_again() -> None:
    made, data = model("llava"), batch("llava", LAYOUTS["one"])
    block = foveate.apply(made, fastv(layer=1, keep=0.5))
    with pytest.raises(RuntimeError, match="no trace yet"):
        _ = block.trace
    found = []
    for _ in range(2):
        with torch.no_grad(), block as trace:
            found.append(made(**data.inputs).logits)
            assert trace.calls == 1
            with pytest.raises(RuntimeError, match="already active"), block:
                pass
    assert torch.equal(*found)


def test_text_names_methods_as_objects_do() -> None:
    made, data = model("llava"), batch("llava", LAYOUTS["one"])
    found = []
    for methods in (
        ["divprune:keep=0.25,weigh=nearest,merge=mean+vtw:layer=2"],
        [divprune(keep=0.25).weighted("nearest", "mean"), "vtw:layer=2"],
    ):
        with torch.no_grad(), foveate.apply(made, *methods) as trace:
            found.append(made(**data.inputs).logits)
        assert len(trace.methods) == 2
    assert torch.equal(*found)


def test_a_trace_holds_the_newest_forwards_and_means_of_all() -> None:
    made, data = model("llava"), batch("llava", LAYOUTS["one"])
    method = "divprune:layer=1,keep=0.5,weigh=nearest"
    with torch.no_grad():
        with foveate.apply(made, method) as whole:
            made.generate(**data.inputs, **GREEDY)
            made(**data.inputs)
        with foveate.apply(made, method, trace_last=2) as newest:
            made.generate(**data.inputs, **GREEDY)
            made(**data.inputs)
    assert whole.calls == newest.calls == 5 and (len(newest.passes), newest.forgotten) == (2, 3)
    assert newest.kept == [row for row in whole.kept if row.call >= 3]
    assert newest.prefill(4) == whole.prefill(4)
    assert newest.mean_kept() == whole.mean_kept() < 1
    assert newest.lost() == whole.lost()
    with pytest.raises(ValueError, match="forward 0 has left the trace"):
        newest.prefill()
    with pytest.raises(ValueError, match="there is no number 5"):
        newest.prefill(5)
    with pytest.raises(ValueError, match="has left the trace"):  # a sum would be too small
        cost_of_trace(shapes(made), newest)
    assert foveate.enable(made).trace.last == TRACE_LAST
    foveate.disable(made)
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="trace_last"):
            foveate.apply(made, trace_last=wrong)


def test_memory_does_not_grow_over_thousands_of_forwards() -> None:
    made, data = model("llava"), batch("llava", LAYOUTS["one"])
    with torch.no_grad(), foveate.apply(made, fastv(layer=1), trace_last=8) as trace:
        held = []
        for _ in range(40):
            made(**data.inputs)
            held.append(weakref.ref(trace.passes[-1]))
        gc.collect()
        assert [one() for one in held] == [None] * 32 + trace.passes
    long = Trace(2, last=16)
    one, half = torch.tensor([4]), torch.tensor([2])
    for number in range(3000):
        cuts = [(0, one, one * 0), (1, half, one * 0)]
        long.add(Pass(number % 2, one, one, one, cuts, one, lost=[(1, half)]))
    assert long.calls == 3000 and len(long.passes) == 16
    assert long.mean_kept() == pytest.approx(0.75) and long.lost() == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3", "internvl"])
def test_threads_take_turns_and_each_gets_its_own_answer(name: str) -> None:
    """M-RoPE, masks of the family's own, and a tower that the method looks at."""
    made = families.model(name)
    asked = [prompt(name, (3, "ab"[i % 2], 2 + i), seed=i).inputs([]) for i in range(4)]
    method = "visionzip:keep=0.5" if name == "internvl" else "fastv:layer=1,keep=0.5"
    with torch.no_grad(), foveate.apply(made, method):
        wanted = [answer(made, inputs) for inputs in asked]
    found: dict[int, list[list[int]]] = {}

    def run(number: int) -> None:
        with torch.no_grad():
            found[number] = [answer(made, asked[number]) for _ in range(3)]

    with foveate.apply(made, method, threads="wait") as trace:
        threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {number: [wanted[number]] * 3 for number in range(4)}
    assert trace.calls == 4 * 3 * GREEDY["max_new_tokens"]
    assert len({tuple(one) for one in wanted}) == 4


def test_a_waiting_thread_runs_when_the_other_one_is_done() -> None:
    made, data = model("llava"), batch("llava", LAYOUTS["one"])
    done: list[Tensor] = []
    threads: list[threading.Thread] = []

    def run() -> None:
        with torch.no_grad():
            done.append(made(**data.inputs).logits)

    def schedule(view: foveate.View) -> Tensor:
        if not threads:
            threads.append(threading.Thread(target=run))
            threads[0].start()
            threads[0].join(0.3)
            assert threads[0].is_alive() and not done  # it waits
        return view.total // 2

    with torch.no_grad(), foveate.apply(made, Method(Even(), schedule), threads="wait"):
        first = made(**data.inputs).logits
        threads[0].join(30)
    assert torch.equal(first, done[0])


def test_a_turn_ends_with_an_error_and_with_the_methods() -> None:
    made, data = model("llava"), batch("llava", LAYOUTS["one"])
    done: list[Tensor] = []

    def run() -> None:
        with torch.no_grad():
            done.append(made(**data.inputs).logits)

    handle = foveate.enable(made, fastv(layer=1), threads="wait")
    with torch.no_grad():
        broken = {**data.inputs, "pixel_values": data.inputs["pixel_values"][:, :1]}
        with pytest.raises(RuntimeError):  # in the tower, before the decoder
            made(**broken)
        thread = threading.Thread(target=run)
        thread.start()
        thread.join(30)
        assert len(done) == 1
        handle.disable()
        run()  # nobody holds a turn
    assert len(done) == 2 and not torch.equal(*done)


def test_disable_waits_for_a_forward_under_way() -> None:
    made, data = model("llava"), batch("llava", LAYOUTS["one"])
    at_work, go_on = threading.Event(), threading.Event()
    found: list[Tensor] = []

    def schedule(view: foveate.View) -> Tensor:
        at_work.set()
        go_on.wait(30)
        return view.total // 2

    def run() -> None:
        with torch.no_grad():
            found.append(made(**data.inputs).logits)

    handle = foveate.enable(made, Method(Even(), schedule))
    thread = threading.Thread(target=run)
    thread.start()
    at_work.wait(30)
    stop = threading.Thread(target=handle.disable)
    stop.start()
    stop.join(0.2)
    assert stop.is_alive()
    go_on.set()
    stop.join(30)
    thread.join(30)
    with (
        torch.no_grad(),
        foveate.apply(made, Method(Even(), lambda view: view.total // 2)) as trace,
    ):
        assert torch.equal(found[0], made(**data.inputs).logits)
    assert trace.mean_kept() < 1


def test_a_pipeline_of_transformers_works_inside(scenes: Any) -> None:
    describe = pipeline("image-text-to-text", model=scenes.model, processor=scenes.processor)
    chat = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": draw(sample("test", 0)).image},
                {"type": "text", "text": "Describe the image in detail."},
            ],
        }
    ]

    def said() -> str:
        return describe(text=chat, max_new_tokens=12, return_full_text=False)[0]["generated_text"]

    plain = said()
    with foveate.apply(scenes.model, "vtw:layer=1") as trace:
        fewer = said()
    assert trace.prefill()[1] == [0] and trace.prefill()[0] == [196] and fewer != plain
    handle = foveate.enable(scenes.model, "vtw:layer=1")
    assert said() == fewer and handle.trace.mean_kept() == trace.mean_kept()
    handle.disable()
    assert said() == plain


MISTAKES = """
import foveate
from foveate.methods import downsample, fastv, sparsevlm
model = foveate.load("scenes").model
for wrong in (
    lambda: fastv(keep="0.5"),
    lambda: downsample(pool="no"),
    lambda: sparsevlm(layers="2"),
    lambda: fastv(kep=0.5),
    lambda: foveate.apply(model, fastv),
    lambda: foveate.apply(model, 0.5),
    lambda: foveate.apply(model, "fastv:keep=0,5"),
    lambda: foveate.apply(model, threads="queue"),
    lambda: foveate.apply(model, trace_last="all"),
):
    try:
        wrong()
    except (ValueError, TypeError) as error:
        print(error)
"""


def test_mistakes_are_told_in_one_clear_line() -> None:
    """In a process of its own, since types are checked before they are reached in this one."""
    done = subprocess.run(
        [sys.executable, "-c", MISTAKES], capture_output=True, text=True, check=True
    )
    for line, part in zip(
        done.stdout.splitlines(),
        (
            "fastv: keep='0.5'; expected a number or None",
            "downsample: pool='no'; expected True or False",
            "sparsevlm: layers='2'; expected a tuple of numbers",
            "fastv() got an unexpected keyword argument 'kep'",
            "call it: fastv(). Expected a Method",
            "got float 0.5. Expected a Method",
            "'5' in 'fastv:keep=0,5' has no value",
            "threads='queue'; expected refuse or wait",
            "trace_last='all'; expected a number of forwards",
        ),
        strict=True,
    ):
        assert part in line


def test_a_handle_that_is_off_takes_nothing_off() -> None:
    made = model("llava")
    first = foveate.enable(made, "divprune:keep=0.25")
    first.disable()
    second = foveate.enable(made, "fastv:layer=1,keep=0.5")
    first.disable()
    assert second.enabled
    with pytest.raises(RuntimeError, match="already active"):
        foveate.enable(made, "vtw:layer=2")
    foveate.disable(made)
    assert not second.enabled


def test_what_enable_put_on_may_end_with_a_block() -> None:
    made, data = model("llava"), batch("llava", LAYOUTS["one"])
    with torch.no_grad():
        made(**data.inputs)  # transformers puts hooks of its own on the tower in its first forward
    plain = hooks(made)
    with torch.no_grad(), foveate.enable(made, "fastv:layer=1,keep=0.5") as trace:
        made(**data.inputs)
    assert hooks(made) == plain and trace.prefill()[-1] == [8]
    handle = foveate.apply(made, "fastv:layer=1,keep=0.5")
    with handle, pytest.raises(RuntimeError, match="already active"), handle:
        pass
    assert hooks(made) == plain


def test_means_are_exact_under_a_default_of_half_precision() -> None:
    made, data = model("llava"), batch("llava", LAYOUTS["several"])
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            with torch.no_grad(), foveate.apply(made, "fastv:layer=1,keep=0.3") as trace:
                made(**data.inputs)
            found.append(trace.mean_kept())
        finally:
            torch.set_default_dtype(torch.float32)
    assert found[0] == found[1] < 1


@pytest.mark.parametrize("given", ["scenes", 3, object()])
def test_what_is_no_model_is_told(given: Any) -> None:
    with pytest.raises(ValueError, match=r"got \w+; expected a model of transformers"):
        anatomy_of(given)
