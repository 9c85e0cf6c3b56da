"""Equal work: the knob is turned to what is asked, wherever the method accepts it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import pytest

import foveate
from foveate.core.method import Method
from foveate.core.schedules import ByStep
from foveate.core.scores import Random
from foveate.cost.flops import costs_of_samples, shapes
from foveate.eval import equal_work as equal
from foveate.eval import records
from foveate.eval.answers import answer
from foveate.eval.tasks import bundled
from foveate.methods import parse
from foveate.models.load import load
from models.tiny import LAYERS, Layout, batch, model


@pytest.mark.parametrize("spec", ["score=mix,schedule=pdrop", "vscan1+vscan2"])
def test_of_several_parts_the_knob_must_be_marked(spec: str) -> None:
    with pytest.raises(ValueError, match="mark the knob"):
        equal.marked(spec)


@pytest.mark.parametrize("work", equal.WORKS)
@pytest.mark.parametrize(
    "spec",
    [
        "fastv:layer=1",
        "random:layer=0,keep=0.9",
        "vtw:layer=?",
        "fastv:rate=?,layer=3",
        "score=random,schedule=fastv:layer=1,keep=?",
        "random:layer=0,keep=0.95+fastv:layer=1,keep=?",
        "divprune:keep=?,weigh=nearest,merge=mean",
        "divprune:weigh=mixed,place=0.5",
        "score=mix,schedule=fastv:layer=1,keep=?,weigh=nearest,strength=0.5,merge=mean,cutoff=0",
    ],
)
def test_tuned_methods_cost_what_is_asked(work: str, spec: str) -> None:
    made = model("llava")
    plain = _tiny_records(made, [])
    target = equal.Target(work, 0.9)
    plan = equal.planned(target, shapes(made), plain)
    found, share = equal.tune(equal.marked(spec), target, plan, LAYERS)
    really = equal.measured(target, _tiny_records(made, parse(found))) / equal.measured(
        target, plain
    )
    assert really == pytest.approx(share, abs=1e-9) and share <= 0.9
    assert share > (0.5 if "vtw" in spec else 0.84)  # 16 tokens, so steps are coarse


def test_weights_and_means_change_no_amount_of_work() -> None:
    """What is kept is the score's and the schedule's doing, so the knob comes out the same with and without them."""
    made = model("llava")
    for work in equal.WORKS:
        target = equal.Target(work, 0.7)
        plan = equal.planned(target, shapes(made), _tiny_records(made, []))
        plain, share = equal.tune("divprune:keep=?", target, plan, LAYERS)
        found, ours = equal.tune("divprune:keep=?,weigh=nearest,merge=mean", target, plan, LAYERS)
        assert (found, ours) == (f"{plain},weigh=nearest,merge=mean", share)


@pytest.mark.parametrize(
    "spec",
    [
        "divprune:keep=0.5,weigh=nearest,strength=?",
        "divprune:keep=0.5,weigh=mixed,place=?",
        "score=mix,schedule=fastv,merge=mean,cutoff=?",
    ],
)
def test_knobs_that_change_no_number_of_tokens_are_not_tuned(spec: str) -> None:
    with pytest.raises(ValueError, match="no work depends on it"):
        equal.values(equal.marked(spec), LAYERS)


@pytest.mark.parametrize(
    ("spec", "least"), [("psigmoid", 0.5), ("psigmoid:first=3", 0.75), ("psigmoid:slope=2", 0.5)]
)
def test_a_knob_is_tuned_where_the_method_accepts_it(spec: str, least: float) -> None:
    made = model("llava")
    plain = _tiny_records(made, [])
    for ratio in (least + 0.01, 0.8, 1.0):
        target = equal.Target("tokens", ratio)
        found, share = equal.tune(
            equal.marked(spec), target, equal.planned(target, shapes(made), plain), LAYERS
        )
        assert ratio - 0.05 < share <= ratio and float(found.rpartition("keep=")[2]) >= least
    target = equal.Target("tokens", least - 0.1)
    with pytest.raises(ValueError, match=rf"keep={least:.3f} still costs"):
        equal.tune(equal.marked(spec), target, equal.planned(target, shapes(made), plain), LAYERS)
    with pytest.raises(ValueError, match="cuts before layer 9"):
        equal.tune(
            "fastv:layer=9,keep=?", target, equal.planned(target, shapes(made), plain), LAYERS
        )


def test_a_method_that_drops_while_decoding_is_tuned_by_running_it() -> None:
    made = model("llava")
    target, plain = equal.Target("tokens", 0.7), _tiny_records(made, [])
    work = equal.either(
        equal.planned(target, shapes(made), plain),
        lambda: equal.ran(target, partial(_tiny_records, made)),
    )
    found, share = equal.tune("st3:layer=1,stride=1,keep=?,every=1", target, work, LAYERS)
    assert 0.6 < share <= 0.7
    assert equal.measured(target, _tiny_records(made, parse(found))) == pytest.approx(
        share * equal.measured(target, plain)
    )


@pytest.mark.slow
def test_work_that_no_plan_foresees_is_measured() -> None:
    loaded = load("scenes")
    target, shape = equal.Target("tokens", 0.8), shapes(loaded.model)
    some = bundled(["questions"], 2)
    plain = answer(loaded, some, [], shape)
    runs: list[int] = []

    def run_it(methods: Sequence[Method]) -> list[records.Record]:
        runs.append(len(methods))
        return answer(loaded, some, methods, shape, [r.tokens for r in plain])

    def unforeseen(methods: Sequence[Method]) -> float:
        return equal.planned(target, shape, plain)([Method(Random(), ByStep(2, (0.5, 0.25)))])

    with pytest.raises(ValueError, match="decode steps"):
        unforeseen([])
    work = equal.either(unforeseen, lambda: equal.ran(target, run_it))
    found, share = equal.tune("fastv:layer=2,keep=?", target, work, 8)
    assert share == pytest.approx(0.8, abs=0.005) and 3 < len(runs) < 20
    foreseen = equal.tune("fastv:layer=2,keep=?", target, equal.planned(target, shape, plain), 8)
    assert foreseen[0] == found and foreseen[1] == pytest.approx(share)


def _tiny_records(made: Any, methods: Sequence[Any]) -> list[records.Record]:
    data = batch("llava", Layout(((3, 0, 5), (7, 0, 2))))
    with foveate.apply(made, *methods) as trace:
        made.generate(**data.inputs, max_new_tokens=3, do_sample=False)
    kept = list(zip(*trace.prefill(), strict=True))
    costs = costs_of_samples(shapes(made), trace, [3, 3])
    text = trace.passes[0].text.tolist()
    return [
        records.Record(i, 0, "", "", 3, text[i], 16, list(kept[i]), 0, asdict(costs[i]))
        for i in (0, 1)
    ]
