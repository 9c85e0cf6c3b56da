"""DyRate: the predictor, its files, its two semantics; and the rankings that methods may use."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import foveate
from foveate.artefacts.predictors import Card, from_pretrained, save_pretrained
from foveate.artefacts.weighting import Weighting
from foveate.core.contract import Schedule
from foveate.core.method import Method
from foveate.core.predictor import RatePredictor, rate_grid
from foveate.core.schedules import Cut
from foveate.core.scores import RANKINGS, AnyOf, LayersMax
from foveate.core.weighing import Cell, Mean, Nearest, Uniform
from foveate.methods import dyrate, fastv, parse
from foveate.methods.dyrate.sparing import Sparing
from models.tiny import LAYERS, Layout, batch, cache_in, model
from oracles.choosers import tiny_predictor

CARD = Card("tiny", LAYERS, 4, 1, (0.0, 0.25, 0.5, 0.75), True, "received", 0.5, {"seed": 1})
LAYOUT = Layout(((3, 0, 5), (2, 0, 2), (6, 0, 1)))


@given(st.integers(2, 20), st.integers(0, 600))
def test_rates_keep_what_the_settled_equation_says(number: int, total: int) -> None:
    """Eq. 3 as settled: rate k of K keeps token i iff i <= N (K - k + 1) / K, tokens counted from 1."""
    predictor = RatePredictor(2, rate_grid(number))
    kept = predictor.keep(torch.tensor([total]))[0].tolist()
    for k in range(1, number + 1):
        assert kept[k - 1] == sum(
            i * number <= total * (number - k + 1) for i in range(1, total + 1)
        )
    assert kept[0] == total


@pytest.mark.parametrize("rates", [(0.5,), (0.5, 0.2), (0.0, 0.0), (-0.1, 0.5), (0.0, 1.1)])
def test_rates_that_are_no_choice_are_refused(rates: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="rates="):
        RatePredictor(4, rates)


def test_without_the_response_share_the_step_cannot_be_read_off() -> None:
    predictor = RatePredictor(4, rate_grid(4), response=False)
    torch.nn.init.normal_(predictor.linear.weight)
    shares = torch.rand(3, 4, 4)
    other = shares.clone()
    other[..., 3] = 0.9
    assert torch.equal(predictor(shares), predictor(other))
    with pytest.raises(ValueError, match="4 heads"):
        predictor(torch.rand(3, 5, 4))


def test_a_predictor_is_two_files_and_comes_back_whole(tmp_path: Path) -> None:
    save_pretrained(tiny_predictor(), CARD, tmp_path / "p")
    loaded, card = from_pretrained(tmp_path / "p")
    assert Card(**{**vars(card), "rates": tuple(card.rates)}) == CARD
    assert torch.equal(loaded.linear.weight, tiny_predictor().linear.weight)
    made, inputs = model("llava"), batch("llava", LAYOUT).inputs
    for method in (
        dyrate(str(tmp_path / "p")),
        dyrate(tiny_predictor(), layer=1, ranking="received"),
    ):
        with torch.no_grad(), foveate.apply(made, method) as trace:
            made(**inputs)
        kept = trace.prefill()
        assert kept == trace.prefill() and min(map(min, kept)) < 16
    with pytest.raises(ValueError, match="7 layers"):
        dyrate(_other(tmp_path, layers=7)).check(LAYERS)
    with (
        pytest.raises(ValueError, match="5 heads"),
        torch.no_grad(),
        foveate.apply(made, dyrate(_other(tmp_path, heads=5))),
    ):
        made(**inputs)


def test_the_control_keeps_by_step_what_the_predictor_kept_on_average(tmp_path: Path) -> None:
    card = Card(**{**vars(CARD), "training": {"held out": {"kept_by_step": [0.5, 0.5, 0.25]}}})
    save_pretrained(tiny_predictor(), card, tmp_path / "p")
    made, inputs = model("llava"), batch("llava", LAYOUT).inputs
    with foveate.apply(made, dyrate(str(tmp_path / "p"), adapt="step")) as trace:
        made.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert [trace.prefill(call)[1] for call in range(5)] == [[8] * 3] * 2 + [[4] * 3] * 3
    with pytest.raises(ValueError, match="adapt='step'"):
        dyrate(tiny_predictor(), layer=1, adapt="step")


def test_a_predictor_acts_as_it_was_trained_to_unless_told_otherwise(tmp_path: Path) -> None:
    where = str(tmp_path / "p")
    save_pretrained(tiny_predictor(), replace(CARD, decode=False, protect="unseen"), where)
    trained, told = dyrate(where), dyrate(where, decode=True, protect="nothing")
    assert trained.drops(1, 0) and not trained.drops(1, 1) and told.drops(1, 1)
    assert isinstance(trained.score, Sparing) and told.score == RANKINGS["received"]
    assert "decode=false,protect=unseen" in trained.name and "protect" not in told.name
    with pytest.raises(ValueError, match="no token is ever lost"):
        dyrate(where, semantics="recompute")
    with pytest.raises(ValueError, match="every later step would run all"):
        dyrate(where, semantics="recompute", protect="nothing")
    with pytest.raises(ValueError, match="rank by tower or diverse or random or even, or"):
        dyrate(where, layer=0)
    spelled = parse("dyrate:predictor=scenes-0.5,layer=2,ranking=last,protect=unseen,decode=false")[
        0
    ]
    assert isinstance(spelled.score, Sparing) and not spelled.drops(2, 1)
    with pytest.raises(ValueError, match="protect='all'; expected one of nothing, unseen"):
        parse("dyrate:predictor=scenes-0.5,protect=all")
    card = Path(where) / "predictor.json"
    facts = json.loads(card.read_text())
    card.write_text(
        json.dumps({key: value for key, value in facts.items() if key not in ("decode", "protect")})
    )
    _, old = from_pretrained(where)
    assert old.decode and old.protect == "nothing", "cards from before these were written"


def test_weights_and_means_are_those_of_the_card_unless_told_otherwise(tmp_path: Path) -> None:
    where, path = str(tmp_path / "p"), tmp_path / "p" / "predictor.json"
    save_pretrained(tiny_predictor(), CARD, where)
    assert "weighting" not in json.loads(path.read_text()), "as cards of before are"
    plain = dyrate(where)
    assert plain.weigh is None and plain.merge is None
    speaking = Weighting("cell", "mean", cutoff=0.5)
    save_pretrained(tiny_predictor(), replace(CARD, weighting=speaking), where)
    assert from_pretrained(where)[1].weighting == speaking
    trained = parse(f"dyrate:predictor={where}")[0]
    assert (trained.weigh, trained.merge) == (Cell(), Mean(Cell(), 0.5))
    assert trained.name == plain.name
    told = parse(f"dyrate:predictor={where},weigh=nearest,cutoff=0.25")[0]
    assert (told.weigh, told.merge) == (Nearest(), Mean(Nearest(), 0.25))
    assert told.name == f"{plain.name},weigh=nearest,cutoff=0.25"
    bare = dyrate(where, weigh="none", merge="none")
    assert (bare.weigh, bare.merge) == (None, None)
    given = dyrate(tiny_predictor(), layer=1, weigh="uniform")
    assert (given.weigh, given.merge) == (Uniform(), None)
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "weighting": {"weigh": "best"}}))
    with pytest.raises(ValueError, match=r"no whole predictor.*weigh='best'"):
        from_pretrained(where)


def test_what_a_prefill_showed_is_remembered_or_asked_for() -> None:
    made, inputs = model("llava"), batch("llava", LAYOUT).inputs
    late = Method(RANKINGS["tower"], lambda view: view.alive - (view.layer == 3) * view.step)
    with foveate.apply(made, late) as trace:
        made.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert trace.prefill(3)[3] == [10] * 3, "16 tokens less 1, 2 and 3"
    with (
        foveate.apply(made, Method(RANKINGS["tower"], _Late())),
        pytest.raises(ValueError, match="act at step 0"),
    ):
        made.generate(**inputs, max_new_tokens=3, do_sample=False)


class _Late(Schedule):
    """Acts while decoding alone."""

    def acts(self, layer: int, step: int) -> bool:
        return layer == 1 and step > 0

    def __call__(self, view: foveate.View) -> torch.Tensor:
        return view.total // 2


def _other(folder: Path, **changed: int) -> str:
    card = Card(**{**vars(CARD), **changed})
    save_pretrained(RatePredictor(card.heads, card.rates), card, folder / "other")
    return str(folder / "other")


def test_damaged_predictors_are_refused(tmp_path: Path) -> None:
    save_pretrained(tiny_predictor(), CARD, tmp_path)
    body = json.loads((tmp_path / "predictor.json").read_text())
    (tmp_path / "predictor.json").write_text(json.dumps({**body, "heads": 9}))
    with pytest.raises(ValueError, match="no whole predictor"):
        from_pretrained(tmp_path)
    (tmp_path / "predictor.json").write_text("{")
    with pytest.raises(ValueError, match="no whole predictor"):
        from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no predictor"):
        from_pretrained(tmp_path / "nothing")


def test_the_two_semantics_never_run_in_each_others_place() -> None:
    made, inputs = model("llava"), batch("llava", LAYOUT).inputs
    cached, anew = (
        dyrate(tiny_predictor(), layer=1),
        dyrate(tiny_predictor(), layer=1, semantics="recompute"),
    )
    with foveate.apply(made, cached), pytest.raises(ValueError, match="without a KV cache"):
        made.generate(**inputs, max_new_tokens=3, use_cache=False)
    with foveate.apply(made, anew), pytest.raises(ValueError, match="use_cache=False"):
        made.generate(**inputs, max_new_tokens=3)
    with foveate.apply(made, anew) as trace:
        made.generate(**inputs, max_new_tokens=6, use_cache=False, do_sample=False)
    assert {row.step for row in trace.kept} == {0} and len(trace.passes) == 6
    assert "recompute" in anew.name and "recompute" not in cached.name


def test_cached_sets_only_shrink_and_recomputed_ones_may_grow() -> None:
    made, inputs = model("llava"), batch("llava", LAYOUT).inputs
    counts = {}
    for semantics, cache in (("cached", True), ("recompute", False)):
        method = dyrate(tiny_predictor(), layer=1, semantics=semantics)  # type: ignore[arg-type]
        with foveate.apply(made, method) as trace:
            made.generate(**inputs, max_new_tokens=12, use_cache=cache, do_sample=False)
        counts[semantics] = torch.tensor([trace.prefill(call)[2] for call in range(12)])
    assert (counts["cached"].diff(dim=0) <= 0).all() and (counts["cached"].diff(dim=0) < 0).any()
    assert (counts["recompute"].diff(dim=0) > 0).any()


def test_every_nth_step_decides() -> None:
    made, inputs = model("llava"), batch("llava", LAYOUT).inputs
    with foveate.apply(made, dyrate(tiny_predictor(), layer=1, every=4)) as trace:
        made.generate(**inputs, max_new_tokens=10, do_sample=False)
    kept = [trace.prefill(call)[2] for call in range(10)]
    for start in (0, 4):
        assert kept[start] == kept[start + 1] == kept[start + 2] == kept[start + 3]
    with pytest.raises(ValueError, match="every=0"):
        dyrate(tiny_predictor(), layer=1, every=0)
    with pytest.raises(ValueError, match="layer=None"):
        dyrate(tiny_predictor())


def test_depth_based_pruning_drops_more_at_every_deeper_layer() -> None:
    made, inputs = model("llava"), batch("llava", LAYOUT).inputs
    with foveate.apply(made, dyrate(tiny_predictor(), layer=1, deeper=0.5)) as trace:
        made.generate(**inputs, max_new_tokens=6, do_sample=False)
    kept = torch.tensor([trace.prefill(call) for call in range(6)])  # call, layer, sample
    assert (kept.diff(dim=1) <= 0).all() and (kept[:, 1:].diff(dim=1) < 0).any()
    assert len({row.step for row in trace.kept}) > 1
    for wrong in (-0.1, 1.5):
        with pytest.raises(ValueError, match="deeper="):
            dyrate(tiny_predictor(), layer=1, deeper=wrong)
    with pytest.raises(ValueError, match="no deeper"):
        dyrate(tiny_predictor(), layer=1, adapt="step", deeper=0.5)


@pytest.mark.parametrize("ranking", RANKINGS)
def test_any_ranking_serves_any_method(ranking: str) -> None:
    made, inputs = model("llava"), batch("llava", LAYOUT).inputs
    with torch.no_grad(), foveate.apply(made, fastv(layer=2, keep=5, ranking=ranking)) as trace:  # type: ignore[arg-type]
        made(**inputs)
    assert trace.prefill()[2:] == [[5, 5, 5]] * 2
    assert ranking == "last" or f"ranking={ranking}" in fastv(ranking=ranking).name  # type: ignore[arg-type]


def test_a_mix_holds_the_upper_half_of_each_part() -> None:
    """Half the budget of each of two rankings is in what their mix keeps."""
    made, inputs = model("llava"), batch("llava", Layout(((3, 0, 5),))).inputs
    seen: dict[str, set[int]] = {}
    parts = (RANKINGS["last"], RANKINGS["received"])

    def watch(name: str) -> None:
        score = {"last": parts[0], "received": parts[1], "mix": AnyOf(parts)}[name]
        with torch.no_grad(), foveate.apply(made, Method(score, Cut(2, 8 if name == "mix" else 4))):
            cache = cache_in(made(**inputs, use_cache=True))
        columns = cache.layers[3].slots.columns(1, torch.device("cpu"))[0].tolist()
        seen[name] = {c for c in columns if 3 <= c < 19}

    for name in ("last", "received", "mix"):
        watch(name)
    assert len(seen["mix"]) == 8
    assert seen["last"] | seen["received"] <= seen["mix"]
    assert seen["last"] != seen["received"]


def test_scores_that_look_back_say_so() -> None:
    made, inputs = model("llava"), batch("llava", LAYOUT).inputs

    def silent(view: foveate.View) -> torch.Tensor:
        return view.of_visual(view.attention(view.newest, back=2)[:, :, 0]).mean(1)

    with (
        torch.no_grad(),
        foveate.apply(made, Method(silent, Cut(3, 4))),
        pytest.raises(ValueError, match="`back`"),
    ):
        made(**inputs)
    with torch.no_grad(), foveate.apply(made, Method(LayersMax(3), Cut(3, 4))) as trace:
        made(**inputs)
    assert trace.prefill()[3] == [4, 4, 4]
    with pytest.raises(ValueError, match="no parts"):
        AnyOf(())
