"""Closed forms against torch's own counter, to the last FLOP."""

from __future__ import annotations

import pytest

import foveate
from foveate.cost.controller import control_step
from foveate.cost.flops import cost_of_counts, cost_of_trace, kept_by, shapes
from foveate.cost.vision import vision_flops
from foveate.methods import dyrate
from models.tiny import LAYERS, Layout, batch, cache_in, model
from oracles.cases import LISTED
from oracles.choosers import tiny_predictor
from oracles.counting import counted

RAGGED = (
    "dyrate",
    "sparsevlm",
    "st3",
    "prumerge",
    "prumerge_plus",
    "dymu",
    "pact",
)  # samples keep different numbers, and fills are not counted
ASKED: dict[str | None, list[int]] = {
    None: [],
    "fastv": [0],
    "vtw": [],
    "random": [],
    "downsample": [],
    "vscan2": [1],
}


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llava", "vipllava"])
@pytest.mark.parametrize("name", [None, *LISTED])
def test_a_trace_costs_what_torch_counts(name: str | None, family: str, backend: str) -> None:
    samples = 1 if name in RAGGED else 2
    made, data = model(family, backend), batch(family, Layout(((3, 0, 5),) * samples), backend)
    methods = [] if name is None else [LISTED[name].method]
    new = 4
    with foveate.apply(made, *methods) as trace:
        ran = counted(lambda: made.generate(**data.inputs, max_new_tokens=new, do_sample=False))
    cost = cost_of_trace(shapes(made), trace, tower=vision_flops(made, data.inputs))
    assert cost.flops == ran
    if family == "vipllava" or name not in ASKED:
        return
    kept = kept_by(methods, LAYERS, 16)
    planned = cost_of_counts(
        shapes(made), kept, text=8, new_tokens=new, tower=cost.tower / 2, asked=ASKED[name]
    )
    assert 2 * planned.flops == ran
    assert 2 * planned.kv_bytes == cost.kv_bytes
    cache = cache_in(made(**data.inputs, use_cache=True))
    if name is None:
        held = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers) * 4
        added = 2 * 2 * 2 * 8 * LAYERS * 4 * (new - 1)
        assert cost.kv_bytes == held + added


@pytest.mark.parametrize("name", ["fastv", "pdrop", "dart", "sparsevlm", "fitprune", "st3"])
def test_without_a_cache_every_step_prunes_anew_at_the_cost_that_torch_counts(name: str) -> None:
    made, data = model("llava"), batch("llava", Layout(((3, 0, 5),)))
    with foveate.apply(made, LISTED[name].method) as trace:
        ran = counted(
            lambda: made.generate(**data.inputs, max_new_tokens=3, do_sample=False, use_cache=False)
        )
    assert (
        cost_of_trace(shapes(made), trace, tower=vision_flops(made, data.inputs)).flops == ran
    )  # transformers runs the tower once, even so
    assert all(trace.prefill(call) == trace.prefill(0) for call in range(3)) or name == "sparsevlm"


@pytest.mark.parametrize("spec", ["weigh=nearest", "merge=mean", "weigh=nearest,merge=mean"])
@pytest.mark.parametrize("name", ["fastv", "divprune", "tome", "dyrate", "st3"])
def test_whom_tokens_join_is_counted(name: str, spec: str) -> None:
    """In the prompt by hidden states, while decoding by every layer's keys."""
    made, data = model("llava"), batch("llava", Layout(((3, 0, 5),)))
    method = LISTED[name].method
    known = dict(pair.split("=") for pair in spec.split(","))
    with foveate.apply(made, method.weighted(**{"weigh": "none", "merge": "own"} | known)) as trace:
        ran = counted(lambda: made.generate(**data.inputs, max_new_tokens=4, do_sample=False))
    with foveate.apply(made, method) as plain:
        made.generate(**data.inputs, max_new_tokens=4, do_sample=False)
    tower = vision_flops(made, data.inputs)
    assert cost_of_trace(shapes(made), trace, tower=tower).flops == ran
    assert sum(done.spent for done in trace.passes) > sum(done.spent for done in plain.passes) or (
        name == "tome" and "mean" in spec  # in place of its own merge
    )


def test_merging_is_counted() -> None:
    made, data = model("llava"), batch("llava", Layout(((3, 0, 5),)))
    with foveate.apply(made, foveate.methods.downsample(layer=1, keep=0.25, pool=True)) as trace:
        ran = counted(lambda: made(**data.inputs))
    assert (
        cost_of_trace(
            shapes(made), trace, tower=vision_flops(made, data.inputs), all_logits=True
        ).flops
        == ran
    )


def test_a_bare_forward_costs_what_torch_counts() -> None:
    made, data = model("llava"), batch("llava", Layout(((3, 0, 5),)))
    with foveate.apply(made) as trace:
        ran = counted(lambda: made(**data.inputs))
    cost = cost_of_trace(
        shapes(made), trace, tower=vision_flops(made, data.inputs), all_logits=True
    )
    assert cost.flops == ran
    assert cost.ratio(cost)["flops"] == 1.0


def test_a_wrong_number_of_counts_is_refused() -> None:
    with pytest.raises(ValueError, match="one per layer"):
        cost_of_counts(shapes(model("llava")), [1, 2], text=3)


def test_the_controllers_share_is_that_of_a_recorded_step() -> None:
    made, inputs = model("llava"), batch("llava", Layout(((3, 0, 5),))).inputs
    runs = []
    for new in (4, 3):
        with foveate.apply(made, dyrate(tiny_predictor(), layer=2)) as trace:
            made.generate(**inputs, max_new_tokens=new, do_sample=False)
        runs.append((cost_of_trace(shapes(made), trace), trace))
    (longer, trace), (shorter, _) = runs
    kept = trace.prefill(3)[3][0]
    found = control_step(shapes(made), layer=2, heads=4, rates=4, visual=16, kept=kept, text=8 + 2)
    step = longer.decode - shorter.decode + longer.head - shorter.head
    assert kept < 16 and found.flops * step == pytest.approx(longer.score - shorter.score)
    assert 0 < found.bytes < 1
