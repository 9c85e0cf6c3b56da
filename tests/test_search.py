"""A whole search on the bundled model: its judge, its record, its file, its command."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

import foveate
from cases import SEARCHED
from foveate.cli.app import run
from foveate.core.method import Method
from foveate.core.schedules import PerLayer
from foveate.core.scores import RANKINGS
from foveate.demo.bundled import load
from foveate.demo.draw import draw
from foveate.demo.world import sample
from foveate.measure.cost import cost_of_trace, shapes
from foveate.methods import parse
from foveate.methods import schedule as schedule_method
from foveate.tune import find_vtw_layer
from foveate.tune.dyrate.rollout import batch_of
from foveate.tune.examples import scene_examples
from foveate.tune.search.costs import Sizes, ratios
from foveate.tune.search.evaluator import Evaluator
from foveate.tune.search.objective import OBJECTIVES, metric
from foveate.tune.search.premise import Premise, essential_share, kendall, overlaps, premise
from foveate.tune.search.search import Data, Search, compared, find_schedule
from test_search_runner import decoded
from tiny import LAYERS, Layout, batch, model

KEEP = (1.0, 1.0, 0.5, 0.25, 0.25, 0.25, 0.1, 0.0)
QUICK = Search(knobs={"tolerance": 0.1, "grid": 8, "stride": 2}, batch=2)


@pytest.fixture(scope="module")
def scenes() -> Any:
    return load("scenes")


@pytest.fixture(scope="module")
def data() -> Data:
    rows = scene_examples("train", 5, kinds=("position", "shape")).rows
    return Data("scenes", rows[:3], rows[3:])


def judge_of(scenes: Any, data: Data, objective: str, **more: Any) -> Evaluator:
    return Evaluator(*scenes, data.calibration, OBJECTIVES[objective], "received", batch=2, **more)


@pytest.mark.parametrize("objective", ["kl", "first-kl", "likelihood"])
def test_quality_is_that_of_cached_decoding_under_apply(objective: str, scenes: Any, data: Data) -> None:
    judge = judge_of(scenes, data, objective)
    found, number = judge.parts(KEEP), 0
    assert found is not None
    for start in (0, 2):
        given, _, _ = batch_of(*scenes, data.calibration[start : start + 2])
        plain = decoded(scenes.model, given).log_softmax(-1)
        ours = decoded(scenes.model, given, Method(RANKINGS["received"], PerLayer(KEEP))).log_softmax(-1)
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
    assert held.runner.tally.layers < tiny.runner.tally.layers <= whole.runner.tally.layers


def test_a_hopeless_trial_is_given_up_and_only_such(scenes: Any, data: Data) -> None:
    judge = judge_of(scenes, data, "kl")
    bad = (1.0, *[0.0] * 7)
    parts = judge.parts(bad)
    assert parts is not None
    quality, before = judge.quality(parts), judge.runner.tally.layers
    assert judge.parts(bad, quality + 1e-3) is None or parts[2] == 0
    assert judge.parts(bad, quality - 1e-6) is not None
    judge = judge_of(scenes, data, "kl")
    assert judge.parts(bad, float(parts[:2].sum() / judge.weights.sum()) / 2) is None
    assert judge.runner.tally.layers < before, "the second batch was not run"


def test_a_metric_is_an_objective(scenes: Any, data: Data) -> None:
    right = metric("first word", lambda said, wanted: float(said.split()[:1] == wanted.split()[:1]))
    judge = Evaluator(*scenes, data.calibration, right, "last", batch=3)
    plain = judge.parts((1.0,) * 8)
    assert plain is not None and 0 < judge.quality(plain) <= 1
    exact = Evaluator(*scenes, data.calibration, OBJECTIVES["exact"], "last", batch=3)
    nothing = exact.parts((1.0, *[0.0] * 7))
    assert nothing is not None and exact.quality(nothing) < 1


def test_gsearch_finds_a_schedule_that_passes_in_few_passes(scenes: Any, data: Data) -> None:
    plan = replace(QUICK, knobs={"tolerance": 0.05}, ranking="mix")
    found = find_schedule(*scenes, plan, data, "scenes")
    assert found.scores["calibration"]["difference"]["value"] >= -0.05
    assert found.keep[:2] == (1.0, 1.0) and found.costs["flops"] < 1
    assert found.search["passes"] / 8 < 2
    assert found.search["passes of bisecting the whole grid at every layer"] > 3 * found.search["passes"]
    for split in ("calibration", "held out", "held out, likelihood"):
        for score in found.scores[split].values():
            assert score["low"] <= score["value"] <= score["high"]
    assert found.model["family"] == "llava" and found.versions["torch"] == torch.__version__


@pytest.mark.parametrize("algorithm", ["psigmoid", "random", "fitprune"])
def test_budgeted_searches_meet_their_budget_on_a_model(algorithm: str, scenes: Any, data: Data) -> None:
    knobs = {"budget": 0.5} | ({} if algorithm == "fitprune" else {"trials": 2})
    found = find_schedule(*scenes, replace(QUICK, algorithm=algorithm, knobs=knobs, cost="flops"), data)
    assert found.costs["flops"] == pytest.approx(0.5, abs=0.02) and found.costs["keep"] < 0.5
    assert list(found.keep) == sorted(found.keep, reverse=True)


def test_a_budget_may_be_measured_time(scenes: Any, data: Data) -> None:
    plan = replace(QUICK, algorithm="psigmoid", knobs={"budget": 0.8, "trials": 1}, cost="seconds")
    found = find_schedule(*scenes, plan, data)
    assert found.costs["layer seconds, predicted"] == pytest.approx(0.8, abs=0.01)
    assert found.costs["prefill seconds, measured"] > 0


def test_vtw_by_search_is_vtw_by_its_own(scenes: Any) -> None:
    rows = scene_examples("train", 4, kinds=("shape",)).rows
    given, _, _ = batch_of(*scenes, rows)
    inputs = {k: v[:, : given.prompt] if k != "pixel_values" else v for k, v in given.inputs.items()}
    own = find_vtw_layer(scenes.model, [inputs], threshold=0.05)
    plan = Search("vtw", {"tolerance": 0.05}, objective="first-kl", ranking="even", first=1)
    found = find_schedule(*scenes, plan, Data("shapes", rows, rows))
    assert own.layer is not None and found.keep == tuple(float(layer < own.layer) for layer in range(8))


def run_until(trial: int, stop: Callable[[], None], scenes: Any, data: Data, record: Path) -> None:
    seen = 0

    def report(_: str) -> None:
        nonlocal seen
        seen += 1
        if seen == trial:
            stop()

    find_schedule(*scenes, QUICK, data, "scenes", record, report=report)


def killed(trial: int, scenes: Any, data: Data, record: Path) -> int:
    """Runs the search in a child that kills itself with SIGKILL in the middle of a trial; its signal."""
    child = os.fork()
    if child == 0:
        run_until(trial, lambda: os.kill(os.getpid(), signal.SIGKILL), scenes, data, record)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_search_that_was_killed_goes_on_to_the_same_end(scenes: Any, data: Data, tmp_path: Path) -> None:
    whole = find_schedule(*scenes, QUICK, data, "scenes", tmp_path / "whole.jsonl")
    lines = (tmp_path / "whole.jsonl").read_text().splitlines()
    trials = len(lines) - 1
    assert trials > 3
    for trial in (3, trials):
        record = tmp_path / f"{trial}.jsonl"
        assert killed(trial, scenes, data, record) == -signal.SIGKILL
        assert len(record.read_text().splitlines()) == trial, "the header and the trials before this one"
        with record.open("a") as file:
            file.write(lines[trial][:25])  # as if the kill had come while the line was being written
        run_again: list[str] = []
        again = find_schedule(*scenes, QUICK, data, "scenes", record, report=run_again.append)
        assert len(run_again) == trials - trial + 1
        assert (again.keep, again.scores, again.costs) == (whole.keep, whole.scores, whole.costs)
    with pytest.raises(ValueError, match="differs in knobs"):
        find_schedule(*scenes, replace(QUICK, knobs={"tolerance": 0.2}), data, "scenes", record)
    record.write_text("what is this?\n")
    with pytest.raises(ValueError, match="no record of a search"):
        find_schedule(*scenes, QUICK, data, "scenes", record)


def test_a_schedule_of_another_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    SEARCHED.save(path)
    assert foveate.load_schedule(path) == SEARCHED
    method = parse(f"schedule:{path}")[0]
    assert method == parse(f"schedule:path={path}")[0] == schedule_method(str(path))
    given = batch("llava", Layout(((3, 0, 5),))).inputs
    with foveate.apply(model("llava"), method) as trace, torch.no_grad():
        model("llava")(**given)
    assert [kept for (kept,) in trace.prefill()] == [16, 11, 11, 5]
    replace(SEARCHED, model={"layers": LAYERS, "family": "llava_next"}).save(path)
    with pytest.raises(ValueError, match="of the family 'llava_next', but this one is 'llava'"):
        foveate.apply(model("llava"), *parse(f"schedule:{path}"))
    replace(SEARCHED, keep=(1.0, 0.5), model={"layers": 2, "family": "llava"}).save(path)
    with pytest.raises(ValueError, match="for a decoder of 2 layers, but this model has 4"):
        foveate.apply(model("llava"), *parse(f"schedule:{path}"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"keep": [1.0, 0.5, 0.7, 0.3]}, "never grow"),
        ({"keep": [1.0, 0.5, 0.7]}, "never grow"),
        ({"keep": [1.0, 0.7, 0.5]}, "4 layers, but keeps shares of 3"),
        ({"keep": []}, "one share for every layer"),
        ({"keep": [1.0, 1.0, 1.5, 0]}, "fraction in"),
        ({"ranking": "best"}, "unknown ranking"),
        ({"within": "all"}, "sample or image"),
        ({"version": 2}, "of version 2"),
        ({"format": "something"}, "no schedule"),
        ({"surplus": 1}, "no whole schedule"),
    ],
)
def test_a_damaged_file_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    SEARCHED.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=said):
        foveate.load_schedule(path)
    with pytest.raises(ValueError, match="cannot read a schedule"):
        foveate.load_schedule(tmp_path / "gone.json")


def test_costs_are_those_of_a_recorded_run(scenes: Any, data: Data) -> None:
    given = Sizes.of(*scenes, data.calibration[:1])
    inputs, _, _ = batch_of(*scenes, data.calibration[:1])
    shape, prompt = shapes(scenes.model), {"pixel_values": inputs.inputs["pixel_values"]}
    prompt |= {k: inputs.inputs[k][:, : inputs.prompt] for k in ("input_ids", "attention_mask")}
    found = []
    for methods in ([Method(RANKINGS["even"], PerLayer(KEEP))], []):
        with foveate.apply(scenes.model, *methods) as trace:
            words = int(inputs.answered.sum())
            scenes.model.generate(**prompt, max_new_tokens=words, min_new_tokens=words, do_sample=False)
        found.append(cost_of_trace(shape, trace))
    assert found[0].prefill < found[1].prefill
    ratio = ratios(shape, given, KEEP)
    assert ratio["prefill"] == pytest.approx(found[0].prefill / found[1].prefill, rel=1e-9)
    assert ratio["decode"] == pytest.approx(found[0].decode / found[1].decode, rel=1e-9)
    assert ratio["keep"] == pytest.approx(sum(KEEP) / 8) and ratio["kv"] < 1


def test_tau_is_scipys_and_the_rest_is_by_definition() -> None:
    scores = torch.randint(0, 12, (4, 40), generator=torch.Generator().manual_seed(0)).float()  # with ties
    found = kendall(scores)
    for a in range(4):
        for b in range(4):
            assert found[a, b] == pytest.approx(kendalltau(scores[a], scores[b]).statistic, abs=1e-12)
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
    assert Premise(first, {}, falling).warnings() == [], "the first layer is left out, as in the paper"
    found = premise(*scenes, data.calibration, "last")
    assert found.tau.shape == (8, 8) and np.allclose(np.diagonal(found.tau), 1)
    assert np.abs(found.tau - found.tau.T).max() < 1e-12 and np.isfinite(found.essential).all()
    same = premise(*scenes, data.calibration, "even")
    assert np.allclose(same.tau, 1) and same.warnings() == []


def test_a_bootstrap_interval_is_paired() -> None:
    weights, plain = torch.ones(50, dtype=torch.float64), torch.arange(50, dtype=torch.float64)
    found = compared(plain - 1, plain, weights, 0)
    assert found["difference"] == {"value": -1.0, "low": -1.0, "high": -1.0}
    assert found["unpruned"]["low"] < 24.5 < found["unpruned"]["high"]


def said_by(capsys: pytest.CaptureFixture[str]) -> str:
    both = capsys.readouterr()
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", both.out + both.err).split())


def test_the_command_searches_and_its_file_works_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture = tmp_path / "g.json", tmp_path / "a.png"
    some = ["--calibration", "2", "--held-out", "2", "--kinds", "shape", "--batch", "2"]
    argv = ["search", "scenes", "--algorithm", "gsearch", "--tolerance", "0.2", "--grid", "4", "--stride", "3"]
    assert run([*argv, *some, "--out", str(out), "--plot", str(picture)]) == 0
    said = said_by(capsys)
    assert "rank the visual tokens alike" in said and "warning: rankings differ" in said and "held out:" in said
    body = json.loads(out.read_text())
    assert body["format"] == "foveate schedule" and body["data"]["calibration"] == 2 and picture.stat().st_size > 1000
    assert run([*argv, *some, "--out", str(out), "--json"]) == 0, "again: everything is in the record"
    assert json.loads(capsys.readouterr().out)["keep"] == body["keep"]
    draw(sample("test", 0)).image.save(tmp_path / "b.png")
    ask = ["generate", str(tmp_path / "b.png"), "how many shapes are there?", "--repeats", "1", "--json"]
    assert run([*ask, "--method", f"schedule:{out}"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][1]["kept"] == pytest.approx(np.mean(body["keep"]), abs=0.01)
    assert run(["plot", "schedule", str(out), "--out", str(tmp_path / "s.png")]) == 0
    look = ["inspect", "ranking", "--samples", "2", "--plot", str(tmp_path / "r.png")]
    assert run([*look, "--json"]) == 0 and (tmp_path / "r.png").stat().st_size > 1000
    said = capsys.readouterr().out
    assert len(json.loads(said.splitlines()[-1])["tau"]) == 8


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["search", "--out", "x.txt"], "ends in .json"),
        (["search", "--out", "/nowhere/x.json"], "no folder"),
        (["search", "--algorithm", "nothing"], "unknown algorithm"),
        (["search", "--algorithm", "psigmoid"], "needs --budget"),
        (["search", "--budget", "0.5"], "gsearch has no --budget"),
        (["search", "--objective", "beauty"], "unknown objective"),
        (["search", "--ranking", "best"], "unknown ranking"),
        (["search", "--start-layer", "0"], "start at layer 1 or more"),
        (["search", "--start-layer", "8"], "0 to 7"),
        (["search", "--variant", "guess"], "bisect or bayes"),
        (["search", "--within", "all"], "sample or image"),
        (["search", "--budget-of", "money"], "--budget-of money"),
        (["search", "--data", "nowhere.jsonl"], "no file"),
        (["search", "--algorithm", "psigmoid", "--budget", "0.1"], "out of reach"),
        (["inspect", "ranking", "--ranking", "best"], "unknown ranking"),
        (["inspect", "ranking", "--plot", "x.gif"], ".png, .svg or .pdf"),
        (["plot", "schedule", "gone.json", "--out", "x.png"], "cannot read a schedule"),
        (["generate", "PICTURE", "what?", "--method", "schedule:gone.json"], "cannot read a schedule"),
        (["generate", "PICTURE", "what?", "--method", "schedule"], "schedule needs path"),
    ],
)
def test_bad_input_is_one_clear_line(
    args: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw(sample("test", 0)).image.save("a.png")
    more = [] if args[0] != "search" or "--out" in args else ["--out", "x.json"]
    few = ["--calibration", "1", "--held-out", "1"] if args[0] == "search" and "--data" not in args else []
    assert run([*("a.png" if a == "PICTURE" else a for a in args), *more, *few]) == 2
    heard = said_by(capsys)
    assert said.lower() in heard.lower() and "Traceback" not in heard


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    argv = ["-m", "foveate", "search", "scenes", "--calibration", "5", "--held-out", "3", "--batch", "2", "--json"]
    argv += ["--tolerance", "0.1", "--grid", "8", "--stride", "2", "--ranking", "mix"]
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29631"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = []
    for name, launcher in (("one", []), ("two", torchrun)):
        out = tmp_path / f"{name}.json"
        command = [sys.executable, *launcher, *argv, "--out", str(out)]
        subprocess.run(command, check=True, env=environment, timeout=300, capture_output=True)
        found.append(json.loads(out.read_text()))
    one, two = found
    assert one["keep"] == two["keep"] and one["scores"] == two["scores"]
    assert one["search"]["passes"] == pytest.approx(two["search"]["passes"], rel=0.3)
