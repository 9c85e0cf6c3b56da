"""The contract of scores, schedules and merges; what is listed, read from text, and planned."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate import Method, Needs, Schedule, Score, View
from foveate.core.contract import ScoreOf
from foveate.core.schedules import Cut
from foveate.core.scores import RANKINGS, Accumulated, AnyOf, Even, LastQuery, LayersMax
from foveate.cost.flops import UnforeseenError, kept_by, shapes
from foveate.eval import equal_work as equal
from foveate.eval.records import Record
from foveate.methods import factories, parse, spec
from foveate.methods.dyrate.sparing import Sparing
from foveate.timing.breakdown import parts
from models.tiny import LAYERS, Layout, batch, model
from oracles.cases import CASES, LISTED

LAYOUT = Layout(((3, 0, 5), (7, 0, 2)))
RATERS = parse("sparsevlm:recycle=0.0")[0].score


@pytest.mark.parametrize(
    "wrapped",
    [
        AnyOf((RATERS,)),
        Accumulated(RATERS),
        AnyOf((AnyOf((Even(), RATERS)),)),
        Sparing(RATERS, LastQuery()),
    ],
)
def test_what_a_wrapped_score_must_see_is_shown_to_it(wrapped: Score) -> None:
    """Raters are chosen before layer 0, where nothing is dropped; without them, nothing would be rated."""
    made, data, seen = model("llava"), batch("llava", LAYOUT), []
    with torch.no_grad(), foveate.apply(made, Method(wrapped, Cut(2, 5)), watch=seen.append):
        made(**data.inputs)
    assert seen[-1].visual.shape == (2, 5)
    assert (seen[-1].notes["raters"].sum(1) > 0).all()


def test_one_ranking_wrapped_is_that_ranking() -> None:
    made, data, kept = model("llava"), batch("llava", LAYOUT), []
    for score in (RATERS, AnyOf((RATERS,)), AnyOf((RATERS, Even()))):
        with torch.no_grad(), foveate.apply(made, Method(score, Cut(2, 5)), watch=kept.append):
            made(**data.inputs)
    alone, wrapped, mixed = (view.visual.tolist() for view in kept[LAYERS :: LAYERS + 1])
    assert alone == wrapped != mixed


def test_what_accumulates_does_not_rank_where_its_base_cannot() -> None:
    made, data = model("llava"), batch("llava", LAYOUT)
    early = Method(Accumulated(RATERS), lambda view: view.total // 2)
    with (
        torch.no_grad(),
        foveate.apply(made, early),
        pytest.raises(ValueError, match="layer 0 has no layer before"),
    ):
        made(**data.inputs)


def test_needs_are_joined_through_wrappers() -> None:
    saliency = parse("visionzip")[0]
    both = AnyOf((saliency.score, LayersMax(3)))
    assert both.needs == Needs(back=3, earliest=1, in_prompt=True, tower=(None,), counts=True)
    assert Accumulated(both).needs == both.needs
    assert saliency.needs.tower == (None,)
    assert RANKINGS["tower"].needs == Needs(tower=(None,)), (
        "what a prefill showed is remembered for later steps"
    )
    assert parse("score=even,schedule=fastv,merge=visionzip")[0].needs.tower == (None,), (
        "a merge's, too"
    )
    assert Needs.of() == Needs.of(Even(), None) == Needs()


def test_plain_callables_are_parts() -> None:
    def half(view: View) -> Tensor:
        return view.alive // 2 if view.layer == 1 else view.alive

    def first(view: View) -> Tensor:
        return -view.visual.float()

    def as_they_are(view: View, keep: Tensor) -> Tensor:
        return view.states(partial=True)

    made, data = model("llava"), batch("llava", LAYOUT)
    plain, typed = Method(first, half, as_they_are), Method(AnyOf((ScoreOf(first),)), half)
    for method in (plain, typed, replace(plain, within="image")):
        with torch.no_grad(), foveate.apply(made, method) as trace:
            made(**data.inputs)
        assert trace.prefill()[1:] == [[8, 8]] * 3
    assert (
        plain.schedule.plan(16, 4) is None
        and plain.drops(0, 5)
        and plain == Method(first, half, as_they_are)
    )


class _Tells:
    """A callable with something of the contract's, without its class."""

    def __call__(self, view: View) -> Tensor:
        return view.alive

    def acts(self, layer: int, step: int) -> bool:
        return False


class _Looks:
    tower = (None,)

    def __call__(self, view: View) -> Tensor:
        return view.visual.float()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((Even(), _Tells()), "_Tells has acts.*foveate.Schedule"),
        ((_Looks(), Cut(1, 2)), "_Looks has tower.*foveate.Score"),
        ((Even(), 3), "(got|Actual value:) 3"),
        ((Cut(1, 2), Even()), "as a score"),
        ((Even(), Cut(1, 2), Even()), "as a merge"),
    ],
)
def test_what_would_be_left_out_in_silence_is_refused(given: tuple[Any, ...], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        Method(*given)


HANG = ("dart", "sparsevlm", "visionzip", "vispruner", "divprune")  # on how many are to stay


@pytest.mark.parametrize("name", [*CASES, *RANKINGS])
def test_scores_that_hang_on_counts_say_so(name: str) -> None:
    """A search ranks once for all counts, unless `Needs.counts` says that this would be wrong."""
    method = CASES[name].method if name in CASES else Method(RANKINGS[name], Cut(2, 5))
    differ: list[bool] = []

    class Spied(Score):
        def __init__(self) -> None:
            self.inner = method.score

        def __call__(self, view: View, counts: Tensor) -> Tensor:
            first, *others = (
                self.inner(view, wanted) for wanted in (counts, counts // 2, counts * 0 + 1)
            )
            differ.extend(not torch.equal(first, other) for other in others)
            return first

    made, data = model("llava"), batch("llava", LAYOUT)
    with (
        torch.no_grad(),
        foveate.apply(made, replace(method, score=Spied(), merge=None, weigh=None)),
    ):
        made.generate(**data.inputs, max_new_tokens=3, do_sample=False)
    assert differ or name in ("vtw", "vscan2 own"), "it was never asked"
    assert method.score.needs.counts or not any(differ)
    assert any(differ) or name not in HANG, "this test sees nothing"


@pytest.mark.parametrize("name", LISTED)
def test_plans_are_what_the_engine_keeps(name: str) -> None:
    method = LISTED[name].method
    made, data = model("llava"), batch("llava", Layout(((3, 0, 5),)))
    if name in ("dyrate", "sparsevlm", "prumerge", "prumerge_plus", "dymu", "pact"):
        with pytest.raises(UnforeseenError, match=re.escape(method.name)):
            kept_by([method], LAYERS, 16)
        return
    plan = kept_by([method], LAYERS, 16)
    with torch.no_grad(), foveate.apply(made, method) as trace:
        made(**data.inputs)
    assert [kept for (kept,) in trace.prefill()] == plan


@dataclass(frozen=True)
class _Wrong(Schedule):
    """Has a bug in its plan."""

    keep: tuple[int, ...] = (5,)

    def acts(self, layer: int, step: int) -> bool:
        return step == 0 and layer == 1

    def plan(self, total: int, layers: int) -> Sequence[int]:
        return [self.keep[layer] for layer in range(layers)]

    def __call__(self, view: View) -> Tensor:
        return view.alive


def test_a_bug_in_a_schedule_is_not_measured_around() -> None:
    made, method = model("llava"), Method(Even(), _Wrong())
    target = equal.Target("tokens", 0.5)
    records = [Record(0, 0, "", "", 3, 8, 16, [16] * 4, 0, {})]
    plan = equal.planned(target, shapes(made), records)
    work = equal.either(plan, lambda: pytest.fail("it was measured"))
    with pytest.raises(IndexError):
        work([method])


@pytest.mark.parametrize("name", ["fastv", "sparsevlm", "visionzip", "dyrate"])
def test_time_is_told_by_part_of_any_method(name: str) -> None:
    """What a method's parts need, notice and share is found through the clocks around them."""
    found = parts(model("llava"), batch("llava", LAYOUT).inputs, [LISTED[name].method], 3)
    assert found["score"] > 0 and found["schedule"] > 0


def test_what_lies_in_the_folder_is_listed() -> None:
    here = Path(foveate.methods.__file__ or "").parent
    modules = {
        m.name: importlib.import_module(f"foveate.methods.{m.name}")
        for m in pkgutil.iter_modules([str(here)])
    }
    found = {name: vars(module)[name] for name, module in modules.items() if name in vars(module)}
    assert found == factories() and set(modules) - set(found) == {"spec"}
    assert all(vars(foveate.methods)[name] is factory for name, factory in found.items())
    assert set(found) <= set(foveate.methods.__all__) and list(factories()) == sorted(factories())


@pytest.mark.slow
def test_type_checkers_see_factories(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api")
    right = tmp_path / "right.py"
    right.write_text(
        "import foveate\n"
        "from foveate.methods import fastv\n"
        "from foveate.methods.dyrate import ranked\n"
        "made: foveate.Method = fastv(layer=2)\n"
        "other: foveate.Method = foveate.methods.sparsevlm(keep=(0.5, 0.3, 0.1))\n"
        "mine = foveate.Method(lambda view: view.visual.float(), lambda view: view.total // 2)\n"
        "ranked('last', 'nothing', 1)\n"
    )
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import foveate\nfoveate.methods.fastv(layr=2)\nfoveate.methods.fastvv()\n")
    options = [
        "--config-file",
        "",
        "--strict",
        "--cache-dir",
        str(tmp_path / "cache"),
        "--follow-imports",
        "silent",
    ]
    said, errors, status = api.run([*options, "--ignore-missing-imports", str(right)])
    assert status == 0, said + errors
    said, _, status = api.run([*options, "--ignore-missing-imports", str(wrong)])
    assert status == 1 and "layr" in said and "fastvv" in said and said.count("error:") == 2


@pytest.mark.parametrize(
    "text",
    [
        "fastv",
        "fastv:layer=2,keep=0.5",
        "schedule:a/b-0.5.json,ranking=mix",
        "vscan1:keep=0.5+vscan2",
        "score=dart:pivots=8,schedule=pdrop:keep=?,layers=2/5,merge=none,within=image",
    ],
)
def test_texts_are_read_and_written_back(text: str) -> None:
    assert spec.write(spec.read(text)) == text
    assert spec.write(spec.read(text.replace(",", " , ").replace("+", " + "))) == text
    assert spec.filled(text, "0.25") == text.replace("?", "0.25")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("random+fastv:keep=2.0", "in 'fastv:keep=2.0' of"),
        ("score=mix,schedule=fastv:layr=2", "did you mean 'layer'.*in 'schedule=fastv:layr=2' of"),
        ("score=mx,schedule=fastv", "did you mean 'mix'.*in 'score=mx' of"),
        ("score=mix:layer=2,schedule=fastv", "ranking mix has no knobs.*in 'score=mix:layer=2' of"),
        ("fastv++vtw", "nothing beside a"),
        ("fastv:layer=2,,keep=1", "empty place"),
        ("fastv:layer=2,layer=3", "gives layer twice"),
        ("schedule:a.json,path=b.json", "gives path twice"),
        ("score=mix,score=last,schedule=fastv", "gives score twice"),
        ("score=mix", "has no schedule"),
    ],
)
def test_errors_name_the_part_that_is_wrong(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse(text)


def test_the_marked_knob_is_found_wherever_it_is() -> None:
    assert equal.marked("score=mix,schedule=pdrop:keep=?") == "score=mix,schedule=pdrop:keep=?"
    assert equal.marked("fastv:layer=1,rate=0.5") == "fastv:layer=1,keep=?"
    assert equal.values("random:keep=0.5+score=mix,schedule=vtw:layer=?", 4) == [
        "0",
        "1",
        "2",
        "3",
        "4",
    ]
    with pytest.raises(ValueError, match="several knobs, fastv:keep and vtw:layer"):
        equal.marked("fastv:keep=?+vtw:layer=?")
    with pytest.raises(ValueError, match="within is no number"):
        equal.values("fastv:within=?", 4)
