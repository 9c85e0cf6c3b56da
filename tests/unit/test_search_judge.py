"""What a search measures: quality of schedules, their costs, the premise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

import foveate
from foveate.core.method import Method
from foveate.core.schedules import PerLayer
from foveate.core.scores import RANKINGS
from foveate.cost.flops import cost_of_trace, shapes
from foveate.eval.metrics import PER_ANSWER, of_one
from foveate.tune.search.costs import Sizes, ratios
from foveate.tune.search.evaluator import Evaluator
from foveate.tune.search.objective import OBJECTIVES, metric
from foveate.tune.search.premise import Premise, essential_share, kendall, overlaps, premise
from foveate.tune.search.search import Data, compared
from foveate.tune.train.dyrate.rollout import batch_of
from foveate.world.language import describe
from foveate.world.scenes import sample as world_sample
from oracles.cached import decoded

KEEP = (1.0, 1.0, 0.5, 0.25, 0.25, 0.25, 0.1, 0.0)


def judge_of(scenes: Any, data: Data, objective: str, **more: Any) -> Evaluator:
    return Evaluator(
        scenes, data.calibration, OBJECTIVES[objective], RANKINGS["received"], batch=2, **more
    )


@pytest.mark.parametrize("objective", ["kl", "first-kl", "likelihood"])
def test_quality_is_that_of_cached_decoding_under_apply(
    objective: str, scenes: Any, data: Data
) -> None:
    judge = judge_of(scenes, data, objective)
    found, number = judge.parts(KEEP), 0
    assert found is not None
    for start in (0, 2):
        given, _, _ = batch_of(scenes, data.calibration[start : start + 2])
        plain = decoded(scenes.model, given).log_softmax(-1)
        ours = decoded(
            scenes.model, given, Method(RANKINGS["received"], PerLayer(KEEP))
        ).log_softmax(-1)
        for row, there in enumerate(given.answered):
            words = given.inputs["input_ids"][row, given.prompt :]
            divergence = (plain[row].exp() * (plain[row] - ours[row])).sum(-1)[there]
            wanted = {
                "kl": -divergence.sum(),
                "first-kl": -divergence[0],
                "likelihood": ours[row].gather(1, words[:, None])[:, 0][there].sum(),
            }[objective]
            assert float(found[number]) == pytest.approx(float(wanted), abs=2e-4, rel=1e-3)
            weight = 1 if objective == "first-kl" else int(there.sum())
            assert judge.weights[number] == weight
            number += 1
    assert float(found.abs().max()) > 0.01, "nothing was lost, so this test could not fail"


def test_what_is_held_changes_the_work_and_not_the_result(scenes: Any, data: Data) -> None:
    whole, held, tiny = (judge_of(scenes, data, "kl", cache_bytes=size) for size in (0, 1e9, 1e6))
    held.hold(KEEP[:4])
    tiny.hold(KEEP[:4])
    trials = [KEEP, (1.0,) * 8, (*KEEP[:4], 0.25, 0.25, 0.0, 0.0)]
    for keep in trials:
        results = [judge.parts(keep) for judge in (whole, held, tiny)]
        assert all(torch.equal(r, results[0]) for r in results)  # type: ignore[arg-type]
    assert whole.held_bytes == 0 and 0 < tiny.most_bytes <= 1e6 < held.most_bytes
    assert (
        held.runner.replay.tally.layers
        < tiny.runner.replay.tally.layers
        <= whole.runner.replay.tally.layers
    )


def test_a_hopeless_trial_is_given_up_and_only_such(scenes: Any, data: Data) -> None:
    judge = judge_of(scenes, data, "kl")
    bad = (1.0, *[0.0] * 7)
    parts = judge.parts(bad)
    assert parts is not None
    quality, before = judge.quality(parts), judge.runner.replay.tally.layers
    assert judge.parts(bad, (quality + 1e-3,)) is None or parts[2] == 0
    assert judge.parts(bad, (quality - 1e-6,)) is not None
    judge = judge_of(scenes, data, "kl")
    assert judge.parts(bad, (float(parts[:2].sum() / judge.weights.sum()) / 2,)) is None
    assert judge.runner.replay.tally.layers < before, "the second batch was not run"


def test_by_kind_a_trial_is_given_up_where_one_kind_is_hopeless(scenes: Any, data: Data) -> None:
    kinds = ["first", *["others"] * (len(data.calibration) - 1)]
    told = [replace(e, kind=kind) for e, kind in zip(data.calibration, kinds, strict=True)]
    judge = Evaluator(scenes, told, OBJECTIVES["kl"], RANKINGS["last"], batch=1, by_kind=True)
    assert judge.groups.tolist() == [0, *[1] * (len(told) - 1)]
    bad = (1.0, *[0.0] * 7)
    parts = judge.parts(bad)
    assert parts is not None
    first = float(parts[0] / judge.weights[0])
    assert judge.parts(bad, (first + 1e-3, -1e9)) is None
    assert judge.parts(bad, (first - 1e-3, -1e9)) is not None


@pytest.mark.parametrize(
    "name", [name for name in PER_ANSWER if name in OBJECTIVES and name != "exact"]
)
def test_every_task_metric_judges_single_answers(name: str) -> None:
    right, other = (describe(world_sample("val", number)) for number in (0, 1))
    assert of_one(name, right, [right]) == pytest.approx(1.0) and OBJECTIVES[name].ceiling == 1
    assert 0 <= of_one(name, other, [right]) < 1 and of_one(name, "", [right]) == 0


def test_a_metric_is_an_objective(scenes: Any, data: Data) -> None:
    right = metric("first word", lambda said, wanted: float(said.split()[:1] == wanted.split()[:1]))
    judge = Evaluator(scenes, data.calibration, right, RANKINGS["last"], batch=3)
    plain = judge.parts((1.0,) * 8)
    assert plain is not None and 0 < judge.quality(plain) <= 1
    exact = Evaluator(scenes, data.calibration, OBJECTIVES["exact"], RANKINGS["last"], batch=3)
    nothing = exact.parts((1.0, *[0.0] * 7))
    assert nothing is not None and exact.quality(nothing) < 1


def test_costs_are_those_of_a_recorded_run(scenes: Any, data: Data) -> None:
    given = Sizes.of(scenes, data.calibration[:1])
    inputs, _, _ = batch_of(scenes, data.calibration[:1])
    shape, prompt = shapes(scenes.model), {"pixel_values": inputs.inputs["pixel_values"]}
    prompt |= {k: inputs.inputs[k][:, : inputs.prompt] for k in ("input_ids", "attention_mask")}
    found = []
    for methods in ([Method(RANKINGS["even"], PerLayer(KEEP))], []):
        with foveate.apply(scenes.model, *methods) as trace:
            words = int(inputs.answered.sum())
            scenes.model.generate(
                **prompt, max_new_tokens=words, min_new_tokens=words, do_sample=False
            )
        found.append(cost_of_trace(shape, trace))
    assert found[0].prefill < found[1].prefill
    ratio = ratios(shape, given, KEEP)
    assert ratio["prefill"] == pytest.approx(found[0].prefill / found[1].prefill, rel=1e-9)
    assert ratio["decode"] == pytest.approx(found[0].decode / found[1].decode, rel=1e-9)
    assert ratio["keep"] == pytest.approx(sum(KEEP) / 8) and ratio["kv"] < 1


def test_tau_is_scipys_and_the_rest_is_by_definition() -> None:
    scores = torch.randint(
        0, 12, (4, 40), generator=torch.Generator().manual_seed(0)
    ).float()  # with ties
    found = kendall(scores)
    for a in range(4):
        for b in range(4):
            assert found[a, b] == pytest.approx(
                kendalltau(scores[a], scores[b]).statistic, abs=1e-12
            )
    rows = torch.tensor([[5.0, 4, 3, 2, 1, 0, 0, 0], [5, 0, 0, 0, 1, 2, 3, 4]])
    assert overlaps(rows, 0.5)[0, 1] == pytest.approx(0.25) and overlaps(rows, 0.125)[0, 1] == 1
    assert essential_share(rows)[0] == pytest.approx(4 / 8)  # 5 + 4 + 3 + 2 of 15 is more than 90 %
    assert np.isnan(essential_share(-rows)).all()


def test_the_premise_is_warned_about_where_it_fails_and_only_there(scenes: Any, data: Data) -> None:
    alike, falling = np.full((4, 4), 0.9), np.tile([0.9, 0.6, 0.5, 0.2], (8, 1))
    assert Premise(alike, {}, falling).warnings() == []
    assert "0.30 on average" in Premise(np.full((4, 4), 0.3), {}, falling).warnings()[0]
    growing = falling.copy()
    growing[:, 2] += 0.3
    assert "at layer 2 (+20% of the tokens)" in Premise(alike, {}, growing).warnings()[0]
    first = alike.copy()
    first[0, 1:] = first[1:, 0] = 0.0
    assert Premise(first, {}, falling).warnings() == [], (
        "the first layer is left out, as in the paper"
    )
    found = premise(scenes, data.calibration, "last")
    assert found.tau.shape == (8, 8) and np.allclose(np.diagonal(found.tau), 1)
    assert np.abs(found.tau - found.tau.T).max() < 1e-12 and np.isfinite(found.essential).all()
    same = premise(scenes, data.calibration, "even")
    assert np.allclose(same.tau, 1) and same.warnings() == []


def test_a_bootstrap_interval_is_paired() -> None:
    weights, plain = torch.ones(50, dtype=torch.float64), torch.arange(50, dtype=torch.float64)
    found = compared(plain - 1, plain, weights, 0)
    assert found["difference"] == {"value": -1.0, "low": -1.0, "high": -1.0}
    assert found["unpruned"]["low"] < 24.5 < found["unpruned"]["high"]
