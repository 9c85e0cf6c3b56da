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
from PIL import Image

import foveate
from foveate.artefacts.schedules import ScheduleFile
from foveate.artefacts.weighting import UNWEIGHED, Weighting
from foveate.cli.app import run
from foveate.core.scores import RANKINGS
from foveate.core.weighing import Cell, Mean, Nearest
from foveate.methods import parse
from foveate.methods import schedule as schedule_method
from foveate.tune import find_vtw_layer
from foveate.tune.examples import scene_examples
from foveate.tune.search.evaluator import Evaluator
from foveate.tune.search.objective import greedy, metric
from foveate.tune.search.search import Data, Search, find_schedule
from foveate.tune.train.dyrate.rollout import batch_of
from foveate.versions import versions
from foveate.world.draw import draw
from foveate.world.scenes import sample
from models.tiny import LAYERS, Layout, batch, model
from oracles.cases import SEARCHED

QUICK = Search(knobs={"tolerance": 0.1, "grid": 8, "stride": 2}, batch=2)


def test_gsearch_finds_a_schedule_that_passes_in_few_passes(scenes: Any, data: Data) -> None:
    plan = replace(QUICK, knobs={"tolerance": 0.05}, ranking="mix")
    found = find_schedule(scenes, plan, data, "scenes")
    assert found.scores["calibration"]["difference"]["value"] >= -0.05
    assert found.keep[:2] == (1.0, 1.0) and found.costs["flops"] < 1
    assert found.search["passes"] / 8 < 2
    assert (
        found.search["passes of bisecting the whole grid at every layer"]
        > 3 * found.search["passes"]
    )
    for split in ("calibration", "held out", "held out, likelihood"):
        for score in found.scores[split].values():
            assert score["low"] <= score["value"] <= score["high"]
    assert found.model["family"] == "llava" and found.versions == versions()


@pytest.mark.parametrize("algorithm", ["psigmoid", "random", "fitprune"])
def test_budgeted_searches_meet_their_budget_on_a_model(
    algorithm: str, scenes: Any, data: Data
) -> None:
    knobs = {"budget": 0.5} | ({} if algorithm == "fitprune" else {"trials": 2})
    found = find_schedule(
        scenes, replace(QUICK, algorithm=algorithm, knobs=knobs, cost="flops"), data
    )
    assert found.costs["flops"] == pytest.approx(0.5, abs=0.02) and found.costs["keep"] < 0.5
    assert list(found.keep) == sorted(found.keep, reverse=True)


def test_a_budget_may_be_measured_time(scenes: Any, data: Data) -> None:
    plan = replace(QUICK, algorithm="psigmoid", knobs={"budget": 0.8, "trials": 1}, cost="seconds")
    found = find_schedule(scenes, plan, data)
    assert found.costs["layer seconds, predicted"] == pytest.approx(0.8, abs=0.01)
    assert found.costs["prefill seconds, measured"] > 0


SPOKEN = Weighting("nearest", "mean")


def test_what_is_searched_with_weights_and_means_runs_with_them(
    scenes: Any, data: Data, tmp_path: Path
) -> None:
    plan = Search("random", {"budget": 0.3, "trials": 1}, cost="keep", batch=2, weighting=SPOKEN)
    path, record = tmp_path / "s.json", tmp_path / "s.trials.jsonl"
    found = find_schedule(scenes, plan, data, record=record)
    plain = find_schedule(scenes, replace(plan, weighting=UNWEIGHED), data)
    assert found.keep == plain.keep and found.scores != plain.scores
    with pytest.raises(ValueError, match="differs in weighting"):
        find_schedule(scenes, replace(plan, weighting=Weighting("cell")), data, record=record)
    found.save(path)
    assert foveate.load_schedule(path) == found
    assert json.loads(path.read_text())["weighting"] == {"weigh": "nearest", "merge": "mean"}
    method = parse(f"schedule:{path}")[0]
    assert (method.weigh, method.merge) == (Nearest(), Mean())
    plain.save(path)
    assert "weighting" not in json.loads(path.read_text()), "as files of before are"
    assert foveate.load_schedule(path) == plain


def test_metrics_judge_what_the_model_says_with_weights_and_means(scenes: Any, data: Data) -> None:
    rows = scene_examples("train", 3, kinds=("description",)).rows
    keep = (1.0, 1.0, *[0.1] * 6)
    file = ScheduleFile(keep, "last", "sample", {"layers": 8}, weighting=SPOKEN)
    heard: dict[str, list[str]] = {}
    for name, weighting in (("weighted", SPOKEN), ("plain", UNWEIGHED)):
        said = heard[name] = []
        objective = metric("said", lambda answer, right, said=said: said.append(answer) or 1.0)
        judge = Evaluator(
            scenes, rows, objective, RANKINGS["last"], batch=len(rows), weighting=weighting
        )
        assert judge.parts(keep) is not None
    given, _, _ = batch_of(scenes, rows)
    longest = int(given.answered.sum(1).max()) + 4
    assert heard["weighted"] == greedy(scenes, given, schedule_method(file), longest)
    assert heard["weighted"] != heard["plain"]


@pytest.mark.parametrize(
    ("told", "weigh", "merge"),
    [
        ("", Nearest(0.5, 2.0), Mean(Nearest(0.5, 2.0), 0.1)),
        (",weigh=none,merge=none", None, None),
        (",merge=none", Nearest(0.5, 2.0), None),
        (",merge=own", Nearest(0.5, 2.0), Mean(Nearest(0.5, 2.0), 0.1)),
        (",weigh=cell", Cell(), Mean(Cell(), 0.1)),
        (",strength=1.0,cutoff=0.3", Nearest(1.0, 2.0), Mean(Nearest(1.0, 2.0), 0.3)),
    ],
)
def test_a_file_says_what_is_not_told(told: str, weigh: Any, merge: Any, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    replace(SEARCHED, weighting=Weighting("mixed", "mean", 0.5, 2.0, 0.1)).save(path)
    (method,) = parse(f"schedule:{path}{told}")
    assert (method.weigh, method.merge) == (weigh, merge)
    wanted = told.replace(",merge=own", "").replace("1.0", "1")
    assert method.name == f"schedule:s.json{wanted}"


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (",weigh=clusters", "no merge of its own"),
        (",cutoff=0.5", "goes with merge=mean"),
        (",place=0.5", "goes with weigh=mixed"),
        (",strength=2", "goes with a kind of weights"),
        (",weigh=best", "expected one of"),
    ],
)
def test_weights_that_do_not_go_together_are_refused(told: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    SEARCHED.save(path)
    with pytest.raises(ValueError, match=said):
        parse(f"schedule:{path}{told}")


def test_vtw_by_search_is_vtw_by_its_own(scenes: Any) -> None:
    rows = scene_examples("train", 4, kinds=("shape",)).rows
    given, _, _ = batch_of(scenes, rows)
    inputs = {
        k: v[:, : given.prompt] if k != "pixel_values" else v for k, v in given.inputs.items()
    }
    own = find_vtw_layer(scenes.model, [inputs], threshold=0.05)
    plan = Search("vtw", {"tolerance": 0.05}, objective="first-kl", ranking="even", first=1)
    found = find_schedule(scenes, plan, Data("shapes", rows, rows))
    assert own.layer is not None and found.keep == tuple(
        float(layer < own.layer) for layer in range(8)
    )


def run_until(trial: int, stop: Callable[[], None], scenes: Any, data: Data, record: Path) -> None:
    seen = 0

    def report(_: str) -> None:
        nonlocal seen
        seen += 1
        if seen == trial:
            stop()

    find_schedule(scenes, QUICK, data, "scenes", record, report=report)


def killed(trial: int, scenes: Any, data: Data, record: Path) -> int:
    """Runs the search in a child that kills itself with SIGKILL in the middle of a trial; its signal."""
    child = os.fork()
    if child == 0:
        run_until(trial, lambda: os.kill(os.getpid(), signal.SIGKILL), scenes, data, record)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_search_that_was_killed_goes_on_to_the_same_end(
    scenes: Any, data: Data, tmp_path: Path
) -> None:
    whole = find_schedule(scenes, QUICK, data, "scenes", tmp_path / "whole.jsonl")
    lines = (tmp_path / "whole.jsonl").read_text().splitlines()
    trials = len(lines) - 1
    assert trials > 3
    for trial in (3, trials):
        record = tmp_path / f"{trial}.jsonl"
        assert killed(trial, scenes, data, record) == -signal.SIGKILL
        assert len(record.read_text().splitlines()) == trial, (
            "the header and the trials before this one"
        )
        with record.open("a") as file:
            file.write(
                lines[trial][:25]
            )  # as if the kill had come while the line was being written
        run_again: list[str] = []
        again = find_schedule(scenes, QUICK, data, "scenes", record, report=run_again.append)
        assert len(run_again) == trials - trial + 1
        assert (again.keep, again.scores, again.costs) == (whole.keep, whole.scores, whole.costs)
    with pytest.raises(ValueError, match="differs in knobs"):
        find_schedule(scenes, replace(QUICK, knobs={"tolerance": 0.2}), data, "scenes", record)
    record.write_text("what is this?\n")
    with pytest.raises(ValueError, match="no record of a search"):
        find_schedule(scenes, QUICK, data, "scenes", record)


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
        ({"ranking": ""}, "name of a ranking"),
        ({"within": "all"}, "sample or image"),
        ({"weighting": {"weigh": "best"}}, "expected one of"),
        ({"weighting": {"merge": "own"}}, "no merge of its own"),
        ({"weighting": {"strength": "much"}}, "no whole schedule"),
        ({"weighting": "nearest"}, "no whole schedule"),
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


def said_by(capsys: pytest.CaptureFixture[str]) -> str:
    both = capsys.readouterr()
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", both.out + both.err).split())


def test_the_command_searches_and_its_file_works_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, picture = tmp_path / "g.json", tmp_path / "a.png"
    some = ["--calibration", "2", "--held-out", "2", "--kinds", "shape", "--batch", "2"]
    some += ["--weigh", "mixed", "--merge", "mean", "--place", "0.5", "--cutoff", "0.8"]
    argv = [
        "search",
        "scenes",
        "--algorithm",
        "gsearch",
        "--tolerance",
        "0.2",
        "--grid",
        "4",
        "--stride",
        "3",
    ]
    assert run([*argv, *some, "--out", str(out), "--plot", str(picture)]) == 0
    said = said_by(capsys)
    assert (
        "rank the visual tokens alike" in said
        and "warning: rankings differ" in said
        and "held out:" in said
    )
    body = json.loads(out.read_text())
    assert (
        body["format"] == "foveate schedule"
        and body["weighting"] == {"weigh": "mixed", "merge": "mean", "place": 0.5, "cutoff": 0.8}
        and body["data"]["calibration"] == 2
        and picture.stat().st_size > 1000
    )
    assert run([*argv, *some, "--out", str(out), "--json"]) == 0, (
        "again: everything is in the record"
    )
    assert json.loads(capsys.readouterr().out)["keep"] == body["keep"]
    draw(sample("test", 0)).image.save(tmp_path / "b.png")
    ask = [
        "generate",
        str(tmp_path / "b.png"),
        "how many shapes are there?",
        "--json",
    ]
    assert run([*ask, "--method", f"schedule:{out}"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["kept"] == pytest.approx(
        np.mean(body["keep"]), abs=0.01
    )
    assert run(["plot", "schedule", str(out), "--out", str(tmp_path / "s.png")]) == 0
    look = ["inspect", "ranking", "--samples", "2", "--plot", str(tmp_path / "r.png")]
    assert run([*look, "--json"]) == 0 and (tmp_path / "r.png").stat().st_size > 1000
    said = capsys.readouterr().out
    assert len(json.loads(said.splitlines()[-1])["tau"]) == 8
    assert run([*look[:-1], str(tmp_path / "mix.png"), "--ranking", "mix"]) == 0
    wide, narrow = (Image.open(tmp_path / name).width for name in ("r.png", "mix.png"))
    assert 3 * narrow == 2 * wide, "a ranking by places has no panel of essential counts"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["search", "--out", "x.txt"], "ends in .json"),
        (["search", "--out", "/nowhere/x.json"], "no folder"),
        (["search", "--algorithm", "nothing"], "unknown algorithm"),
        (["search", "--algorithm", "psigmoid"], "needs --budget"),
        (["search", "--budget", "0.5"], "gsearch has no --budget"),
        (["search", "--objective", "beauty"], "unknown objective"),
        (["search", "--ranking", "best"], "unknown score 'best'"),
        (["search", "--start-layer", "0"], "start at layer 1 or more"),
        (["search", "--start-layer", "8"], "0 to 7"),
        (["search", "--variant", "guess"], "bisect or bayes"),
        (["search", "--within", "all"], "sample or image"),
        (["search", "--budget-of", "money"], "--budget-of money"),
        (["search", "--weigh", "best"], "weigh='best'"),
        (["search", "--merge", "own"], "no merge of its own"),
        (["search", "--cutoff", "0.5"], "goes with merge=mean"),
        (["search", "--data", "nowhere.jsonl"], "no file"),
        (["search", "--algorithm", "psigmoid", "--budget", "0.1"], "out of reach"),
        (["inspect", "ranking", "--ranking", "best"], "unknown score 'best'"),
        (["inspect", "ranking", "--plot", "x.gif"], ".png, .svg or .pdf"),
        (["plot", "schedule", "gone.json", "--out", "x.png"], "cannot read a schedule"),
        (
            ["generate", "PICTURE", "what?", "--method", "schedule:gone.json"],
            "cannot read a schedule",
        ),
        (["generate", "PICTURE", "what?", "--method", "schedule"], "schedule needs path"),
    ],
)
def test_bad_input_is_one_clear_line(
    args: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    draw(sample("test", 0)).image.save("a.png")
    more = [] if args[0] != "search" or "--out" in args else ["--out", "x.json"]
    few = (
        ["--calibration", "1", "--held-out", "1"]
        if args[0] == "search" and "--data" not in args
        else []
    )
    assert run([*("a.png" if a == "PICTURE" else a for a in args), *more, *few]) == 2
    heard = said_by(capsys)
    assert said.lower() in heard.lower() and "Traceback" not in heard


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    argv = [
        "-m",
        "foveate",
        "search",
        "scenes",
        "--calibration",
        "5",
        "--held-out",
        "3",
        "--batch",
        "2",
        "--json",
    ]
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
