"""What a tuning chooses, certifies and promises, apart from any model; and its parts on the bundled one."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import foveate
from foveate.artefacts.presets import every, presets
from foveate.artefacts.tuned import NOTHING, SEARCHED, TunedFile, load_tuned
from foveate.core.guard import FEATURES
from foveate.eval.divergence import divergence, reference
from foveate.eval.tasks import Sample, bundled
from foveate.methods import parse, tuned
from foveate.tune.setting.certificate import Promise
from foveate.tune.setting.data import apart
from foveate.tune.setting.finalists import Finalist, front, settled
from foveate.tune.setting.portfolio import lines
from foveate.tune.setting.taught import Teacher
from foveate.tune.setting.wish import Wish, sentence
from models.tiny import Layout, batch, model
from oracles.cases import TUNED

TWO = Layout(((3, 0, 2, 0, 4), (5, 0, 3)), seed=3)  # two pictures, and one
PLACE = {"family": "llava", "layers": 4, "hidden": 32}


def sample(number: int, group: str = "", **more: Any) -> Sample:
    return Sample(f"k{number}", "t", list, f"ask {number}", (), (), group or str(number), **more)


def test_pictures_stay_together_and_the_parts_share_none() -> None:
    rows = [sample(n, group=str(n // 3)) for n in range(60)]
    found = apart("rows", rows, seed=3)
    ours, theirs = ({s.group for s in part} for part in (found.choose, found.certify))
    assert not ours & theirs and (len(ours), len(theirs)) == (7, 13)
    assert sorted(s.key for s in found.both) == sorted(s.key for s in rows)
    again, other = apart("rows", rows, seed=3), apart("rows", rows, seed=4)
    assert again == found and {s.group for s in other.choose} != ours


@pytest.mark.parametrize("pictures", [1, 3, 7])
def test_too_few_pictures_are_refused(pictures: int) -> None:
    with pytest.raises(ValueError, match="expected 8 or more, and 50 to 500 to certify"):
        apart("rows", [sample(n) for n in range(pictures)], seed=0)


def finalist(cost: float, *losses: float) -> Finalist:
    return Finalist(f"at {cost}", cost, np.array(losses))


def test_the_order_of_tests_goes_from_the_most_costly_to_the_cheapest() -> None:
    dear, middle, beaten, cheap = (
        finalist(0.7, 0, 0),
        finalist(0.4, 0, 0),
        finalist(0.5, 0.5, 0.5),
        finalist(0.2, 0, 1),
    )
    assert front([cheap, beaten, dear, middle]) == [dear, middle, cheap]


SETTINGS = [(0.7, 0.01), (0.5, 0.03), (0.35, 0.06), (0.25, 0.09), (0.18, 0.14), (0.12, 0.3)]


def population(count: int, rng: np.random.Generator) -> np.ndarray:
    """Losses of `SETTINGS` on pictures, some of which are hard for all (settings, pictures)."""
    hard = rng.beta(0.6, 1.4, count)
    return np.stack([rng.random(count) < np.minimum(1, mean * hard / 0.3) for _, mean in SETTINGS])


def test_the_choice_breaks_its_promise_at_most_as_often_as_stated() -> None:
    """The whole choice on drawn examples of a population whose true losses are known."""
    rng = np.random.default_rng(0)
    whole = population(50_000, rng)
    truth = dict(zip([cost for cost, _ in SETTINGS], whole.mean(1), strict=True))
    promise = Promise(0.1, 0.9)
    broken = cheaper = 0
    times = 200
    for _ in range(times):
        drawn = rng.choice(whole.shape[1], 200, replace=False)
        parts = whole[:, drawn[:100]], whole[:, drawn[100:]]
        rivals = [Finalist(str(c), c, parts[0][i]) for i, (c, _) in enumerate(SETTINGS)]
        other = {str(c): parts[1][i] for i, (c, _) in enumerate(SETTINGS)}
        chosen = settled(front(rivals), lambda one, o=other: o[one.spec], promise, binary=True)
        broken += chosen is not None and truth[chosen.cost] > promise.risk
        cheaper += chosen is not None and chosen.cost < 0.6
    assert broken <= times * 0.1 + 3.3 * math.sqrt(times * 0.09)
    assert cheaper > 0.8 * times  # not vacuous


def test_where_nothing_helps_the_unpruned_model_stays() -> None:
    promise = Promise(0.05)
    bad = [finalist(0.5, *[1.0] * 80), finalist(0.2, *[1.0] * 80)]
    assert settled(bad, lambda one: one.losses, promise, binary=False) is None
    lucky = [finalist(0.5, *[0.0] * 80)]  # fine where it was chosen, bad in the test
    assert settled(lucky, lambda one: np.ones(80, dtype=bool), promise, binary=True) is None
    few = [finalist(0.5, *[0.0] * 9), finalist(0.2, *[0.0] * 9)]
    chosen = settled(few, lambda one: np.zeros(9, dtype=bool), promise, binary=True)
    assert chosen is few[1] and chosen.verdict is not None and not chosen.verdict.holds
    few = [replace(one, verdict=None) for one in few]
    worse = settled(few, lambda one: np.full(9, one.cost < 0.3), promise, binary=True)
    assert worse is few[0]


def test_sentences_say_what_holds_and_what_would_do() -> None:
    wish = Wish(risk=0.05)
    found = {"holds": True, "risk": 0.05, "tested": {"loss": 0.009, "pictures": 214}}
    assert sentence(wish, found) == (
        "With 95 % confidence, on data like these, at most 5 % of answers differ from the unpruned model's "
        "(0.9 % on 214 pictures that nothing was chosen on)."
    )
    found = {"holds": False, "risk": 0.05, "estimated": 0.0, "pictures": 12, "enough": 59}
    assert "12 pictures are too few" in sentence(wish, found) and "about 59" in sentence(
        wish, found
    )
    found = {"holds": False, "risk": 0.05, "estimated": None, "pictures": 99, "enough": None}
    assert sentence(wish, found).startswith("Nothing cheaper than the unpruned model")


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({}, "one of --loss and --speed"),
        ({"risk": 0.1, "speed": 2.0}, "one of --loss and --speed"),
        ({"risk": 0.0}, r"risk=0; expected a number in \(0, 1\)"),
        ({"risk": 0.1, "confidence": 1.0}, "confidence=1"),
        ({"speed": 0.5}, "expected more than 1x"),
        ({"risk": 0.1, "loss": "all"}, "expected one of answers, words, score"),
        ({"risk": 0.1, "cost": "money"}, "expected one of flops, kv, seconds"),
    ],
)
def test_wishes_that_contradict_themselves_are_refused(knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Wish(**knobs)


@pytest.mark.parametrize("depth", [4, 8, 28, 80])
def test_the_portfolio_has_methods_for_every_depth(depth: int) -> None:
    for line in lines(depth):
        for method in parse(line.replace("=?", "=0.75")):
            method.check(depth)


def test_presets_are_methods_and_say_what_was_measured() -> None:
    for family, settings in every().items():
        for preset in settings:
            parse(preset.method)
            assert preset.evidence and family
    assert {preset.name for preset in presets("llava", "scenes")} == {"scenes", "*"}
    assert all(
        preset.name == "*" for preset in presets("qwen2_5_vl", "Qwen/Qwen2.5-VL-7B-Instruct")
    )
    assert presets("unheard", "of")


# -- the file as a method ---------------------------------------------------------------------------


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    schedule = foveate.ScheduleFile((1.0, 0.5, 0.5, 0.2), "last", "sample", {"layers": 4})
    whole = TunedFile(SEARCHED, PLACE, {"holds": True}, schedule, limits={"likeness": (0.1, 0.2)})
    whole.save(tmp_path / "x.json")
    assert load_tuned(tmp_path / "x.json") == whole


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "no tuned setting"),
        ("[", "cannot read"),
        ('{"format": "foveate tuned", "version": 9}', "update foveate"),
        ('{"format": "foveate tuned", "version": 1, "method": "none"}', "no whole tuned setting"),
    ],
)
def test_what_is_no_tuned_setting_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        parse(f"tuned:{tmp_path / 'x.json'}")


def test_it_is_the_method_that_was_chosen_and_refuses_other_models() -> None:
    made, given = model("llava"), batch("llava", TWO).inputs
    with torch.inference_mode():
        with foveate.apply(made, TUNED.method):
            wanted = made(**given).logits
        with foveate.apply(made, tuned(TUNED)):
            found = made(**given).logits
    assert torch.equal(found, wanted)
    other = replace(TUNED, model={**TUNED.model, "family": "qwen2_vl"})
    with pytest.raises(
        ValueError, match="tuned for a qwen2_vl model of 4 layers; this one is llava"
    ):
        foveate.apply(made, tuned(other)).__enter__()
    deeper = replace(TUNED, model={**TUNED.model, "layers": 32})
    with pytest.raises(ValueError, match="of 32 layers; this one is llava of 4 layers"):
        foveate.apply(made, tuned(deeper)).__enter__()
    plain = replace(TUNED, method=NOTHING)
    with torch.inference_mode(), foveate.apply(made, tuned(plain)):
        same = made(**given).logits
    assert torch.allclose(same, made(**given).logits, atol=1e-5)


@pytest.mark.parametrize("spec", ["fastv:layer=1,keep=0.5", "st3:layer=1,stride=2"])
def test_inputs_outside_the_limits_run_unpruned_to_their_end(spec: str) -> None:
    """A batch of one sample within the limits and one with too many visual tokens."""
    made, given = model("llava"), batch("llava", TWO).inputs
    fewest = (given["input_ids"] == made.config.image_token_id).sum(1).min().item()
    limits = dict.fromkeys(FEATURES, (-1000000000.0, 1000000000.0)) | {
        "visual tokens": (0.0, fewest + 0.5)
    }
    guarded = tuned(replace(TUNED, method=spec, limits=limits))
    kept = {}
    for name, methods in {"plain": (), "pruned": (spec,), "guarded": (guarded,)}.items():
        with foveate.apply(made, *methods) as trace:
            made.generate(**given, max_new_tokens=6, do_sample=False)
        kept[name] = [torch.stack(done.visual(trace.layers)).sum(0) for done in trace.passes]
    for plain, pruned, found in zip(kept["plain"], kept["pruned"], kept["guarded"], strict=True):
        assert torch.equal(found[:, 0], plain[:, 0]) and torch.equal(found[:, 1], pruned[:, 1])
        assert not torch.equal(pruned[:, 0], plain[:, 0])  # else the guard showed nothing


# -- the race -----------------------------------------------------------------------------------------


def test_one_pass_for_all_settings_finds_the_divergence_that_each_has_alone(scenes: Any) -> None:
    samples = bundled(["questions"], None, 500, split="val", pictures=1)[:4]
    specs = [
        "fastv:layer=2,keep=0.2",
        "vispruner:keep=0.1,weigh=nearest,merge=mean",
        "dyrate:predictor=scenes-0.33-decode",
    ]
    teacher = Teacher(scenes, {spec: parse(spec)[0] for spec in specs})
    found = dict(teacher.of(samples, specs))
    for spec in specs:
        far = 0.0
        for sample, got in zip(samples, found[spec], strict=True):
            inputs = scenes.encode([(sample.images(), sample.prompt)])
            given = reference(scenes, inputs, sample.max_new_tokens)
            wanted = divergence(scenes, given, parse(spec))
            assert got.kl == pytest.approx(wanted.kl, abs=1e-4)
            assert got.agreement == pytest.approx(wanted.agreement)
            far += got.kl
        assert far > 1e-3


def test_what_the_model_cannot_run_is_left_out_with_its_reason() -> None:
    loaded = foveate.Loaded(model("llava"), None)
    deep = "fastv:layer=40,keep=0.5"
    teacher = Teacher(loaded, {spec: parse(spec)[0] for spec in (deep, "fastv:layer=1,keep=0.5")})
    assert set(teacher.refused) == {deep} and "layers 0 to 3" in teacher.refused[deep]
