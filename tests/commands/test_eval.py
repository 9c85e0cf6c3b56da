"""`foveate eval`: the same result however it was run, equal work that is equal, and mistakes said plainly."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import foveate
from foveate.cli.app import run
from foveate.cli.output import write_json
from foveate.cost.flops import Cost, cost_of_trace, costs_of_samples, shapes
from foveate.eval import records, report
from foveate.eval.answers import answer, batches, evaluate
from foveate.eval.tasks import TASKS, bundled, from_file
from foveate.lmms import tasks
from foveate.methods import parse
from foveate.models.load import load
from foveate.models.loaded import Loaded
from foveate.processes import Processes
from foveate.world.draw import draw
from foveate.world.scenes import sample
from models.tiny import LAYERS, Layout, batch, model
from oracles.cases import LISTED

SPEC = "fastv:layer=2,keep=0.25"


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load("scenes")


@pytest.mark.parametrize("name", LISTED)
def test_costs_of_samples_add_up_to_the_batchs(name: str) -> None:
    made, data = model("llava"), batch("llava", Layout(((3, 0, 5), (7, 0, 2))))
    with foveate.apply(made, LISTED[name].method) as trace:
        made.generate(**data.inputs, max_new_tokens=4, do_sample=False)
    shape = shapes(made)
    whole = cost_of_trace(shape, trace)
    assert sum(costs_of_samples(shape, trace, [4, 4]), Cost()) == whole
    short = costs_of_samples(shape, trace, [4, 2])
    assert (
        short[1].decode < costs_of_samples(shape, trace, [4, 4])[1].decode and short[1].prefill > 0
    )
    method = LISTED[name].method
    if not any(
        method.drops(layer, step) for layer in range(LAYERS) for step in (1, 2, 3)
    ):  # else later holds less
        assert short[1].kv_bytes < short[0].kv_bytes


def test_batches_hold_every_sample_once_and_answers_of_like_length() -> None:
    samples = bundled(["questions", "descriptions"], 7)
    plan = batches(samples, 4)
    assert sorted(i for some in plan for i in some) == list(range(14))
    assert all(
        len({samples[i].max_new_tokens for i in some}) == 1 and len(some) <= 4 for some in plan
    )


def test_a_killed_run_goes_on_to_the_same_answers(loaded: Loaded, tmp_path: Path) -> None:
    samples, methods = bundled(["questions"], 6), parse(SPEC)
    whole = evaluate(loaded, samples, SPEC, methods, 2)
    plain = evaluate(loaded, samples, "unpruned", [], 2)
    assert any(sum(a.kept) < sum(b.kept) for a, b in zip(whole, plain, strict=True))
    evaluate(loaded, samples, SPEC, methods, 2, folder=tmp_path)
    file = next(records.place(tmp_path, SPEC).glob("*.jsonl"))
    lines = file.read_text().splitlines()
    file.write_text(
        "\n".join(lines[:3]) + "\n" + lines[3][: len(lines[3]) // 2]
    )  # killed while it wrote
    ran: list[int] = []
    again = evaluate(loaded, samples, SPEC, methods, 2, folder=tmp_path, progress=ran.append)
    assert again == whole and ran == [2, 2, 2]
    ran.clear()
    assert evaluate(
        loaded, samples, SPEC, methods, 2, folder=tmp_path, progress=ran.append
    ) == whole and ran == [6]


def test_two_shares_together_are_the_whole(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = bundled(["questions"], 6)
    monkeypatch.setattr(Processes, "wait", lambda self: None)
    monkeypatch.setattr(Processes, "gather", lambda self, rows: [rows])
    shares = (Processes(0, 2), Processes(1, 2))
    first, second = (evaluate(loaded, samples, SPEC, parse(SPEC), 2, among=each) for each in shares)
    assert len(first) == 4 and len(second) == 2
    joined = sorted([*first, *second], key=lambda r: r.sample)
    assert joined == evaluate(loaded, samples, SPEC, parse(SPEC), 2)


def test_a_process_has_its_own_gpu_and_one_alone_needs_nobody() -> None:
    assert (
        Processes(3, 4, 1).device("cuda") == "cuda:1" and Processes(3, 4, 1).device("cpu") == "cpu"
    )
    alone, ones = Processes(), torch.ones(2)
    alone.wait()
    assert (
        alone.device("cuda") == "cuda" and alone.gather("a") == ["a"] and alone.of_first("a") == "a"
    )
    assert torch.equal(alone.mean(ones), ones)


@pytest.mark.slow
def test_two_processes_report_what_one_does(tmp_path: Path) -> None:
    args = [
        "eval",
        "--tasks",
        "questions,captions",
        "--limit",
        "5",
        "--batch",
        "2",
        "--method",
        SPEC,
    ]
    args += ["--tokenizer", "words", "--json", "--match", "flops=0.7", "--save"]
    alone = [sys.executable, "-m", "foveate", *args, str(tmp_path / "one")]
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        "29617",
    ]
    both = [*launch, "-m", "foveate", *args, str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for command in (alone, both):
        subprocess.run(command, check=True, env=environment, timeout=300, stdout=subprocess.DEVNULL)
    one, two = (
        json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two")
    )
    assert one == two
    assert len(list((tmp_path / "two").glob("*/process-1.jsonl"))) == 2


def test_answers_end_where_the_model_ends_them(loaded: Loaded) -> None:
    some = bundled(["questions"], 3)
    shape = shapes(loaded.model)
    free = answer(loaded, some, [], shape)
    forced = answer(loaded, some, [], shape, lengths=[4, 2, 3])
    assert all(r.tokens < 4 for r in free) and [r.tokens for r in forced] == [4, 2, 3]
    assert forced[1].cost["decode"] < forced[0].cost["decode"]


def test_the_command_reports_figures_differences_and_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [
        "eval",
        "--method",
        SPEC,
        "--also",
        "vtw:layer=4",
        "--limit",
        "3",
        "--tokenizer",
        "words",
    ]
    assert run([*args, "--save", str(tmp_path / "out"), "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    methods = body["methods"]
    assert list(methods) == ["unpruned", SPEC, "vtw:layer=4"] and body["tokenizer"] == "words"
    assert (
        methods["unpruned"]["work"]["flops"] == 1
        and "difference" not in methods["unpruned"]["figures"]
    )
    ours = methods[SPEC]["figures"]["descriptions object-recall"]
    plain = methods["unpruned"]["figures"]["descriptions object-recall"]
    assert ours["difference"]["value"] == pytest.approx(ours["value"] - plain["value"])
    assert ours["difference"]["value"] < 0 and methods[SPEC]["figures"]["agreement"]["value"] < 100
    lines = [
        json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 27 and lines[9]["kept"][:3] == [196, 196, 49]
    assert run([*args, "--save", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == body
    assert run([*args, "--save", str(tmp_path / "out")]) == 0
    assert "paired difference to unpruned" in " ".join(capsys.readouterr().out.split())
    assert run([*args, "--save", str(tmp_path / "out"), "--against", "vtw:layer=4"]) == 0
    assert "paired difference to vtw:layer=4" in " ".join(capsys.readouterr().out.split())
    assert run([*args, "--against", "vtw:layer=3"]) == 2
    assert "methods that run as they are" in " ".join(capsys.readouterr().err.split())
    assert run([*args, "--save", str(tmp_path / "out"), "--batch", "3"]) == 2
    assert "another run: batch 16 (now 3)" in " ".join(capsys.readouterr().err.split())


def _file(folder: Path, *rows: Any) -> Path:
    draw(sample("test", 1)).image.save(folder / "a.png")
    path = folder / "mine.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


GOOD: dict[str, Any] = {
    "image": "a.png",
    "prompt": "how many shapes are there?",
    "reference": "two",
    "metric": "exact",
}


def test_a_file_of_ones_own_is_a_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    several = {
        **GOOD,
        "images": ["a.png"],
        "references": ["yes"],
        "metric": ["pope", "exact"],
        "kind": "odd",
    }
    path = _file(tmp_path, {**GOOD, "kind": "number", "max_new_tokens": 3}, "", several)
    first, second = from_file(path)
    assert first.group == second.group == "a.png" and first.max_new_tokens == 3
    assert second.metrics == ("pope-f1", "pope-accuracy", "pope-yes", "exact")
    assert run(["eval", "--data", str(path), "--tokenizer", "words", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["methods"]["unpruned"]["figures"]
    assert {"mine exact", "mine/number exact", "mine/odd exact", "mine pope-f1"} <= set(figures)
    assert figures["mine pope-f1"]["samples"] == 1 and figures["mine exact"]["samples"] == 2


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {**GOOD, "metric": "ciderr"},
            "mine.jsonl:1: unknown metric 'ciderr' (did you mean 'cider'?)",
        ),
        ({**GOOD, "image": "b.png"}, "cannot read the image b.png"),
        ({**GOOD, "prompt": " "}, "expected text"),
        ({**GOOD, "reference": []}, "references=[]"),
        ({**GOOD, "metric": "vqa"}, "4 annotators"),
        ({**GOOD, "answer": "two"}, "unknown field 'answer'"),
        ({**GOOD, "max_new_tokens": 0}, "whole number"),
        ("{", "mine.jsonl:1"),
        ("[1]", "expected an object"),
        ("", "has no rows"),
    ],
)
def test_a_bad_file_is_refused_whole(
    row: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _refused(["eval", "--data", str(_file(tmp_path, row))], said, capsys)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--tasks", "poetry"], "unknown task 'poetry'"),
        (["--data", "nowhere.jsonl"], "there is no file"),
        (["--match", "flops=2"], "a ratio in (0, 1]"),
        (["--match", "flops"], "flops=0.33"),
        (["--match", "flops=0.1", "--limit", "1", "--method", "vtw"], "ask for more"),
        (["--match", "flops=0.5", "--method", "fastv:keep=?,layer=?"], "several knobs"),
        (["--match", "flops=0.5", "--method", "fastvv"], "did you mean 'fastv'"),
        (["--match", "flops=0.5", "--method", "fastv+vtw:layer=3"], "mark the knob"),
        (["--match", "flops=0.5", "--method", "fastv:layr=?"], "did you mean 'layer'"),
        (["--match", "flops=0.5", "--method", "fastv:ranking=?"], "no number"),
        (["--also", "fastvv"], "did you mean 'fastv'"),
        (
            ["--match", "flops=0.5", "--method", "dyrate:predictor=scenes-0.5"],
            "which knob of dyrate",
        ),
        (["--method", "fastv:keep=2.5"], "fraction"),
        (["--tokenizer", "moses"], "unknown tokenizer"),
        (["--limit", "0"], "limit"),
        (["--pictures", "0"], "pictures"),
        (["--split", "train"], "test or val"),
        (["--tasks", "easy-vqa", "--first", "1000"], "easy-vqa has no picture of number 1000"),
        (["--save", __file__], "is a file"),
        (["--model", "/nowhere/at/all"], "cannot load a model"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [] if "--limit" in args else ["--limit", "1"]
    _refused(["eval", *args, *few], said, capsys)


def _refused(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(argv) == 2
    err = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().err).split())
    assert said.lower() in err.lower() and "Traceback" not in err and "error:" in err


def test_every_task_gives_samples_that_its_metrics_can_judge() -> None:
    for name in TASKS:
        for made in bundled([name], 2, first=3):
            assert made.images()[0].size == (224, 224) and made.references[0] and made.prompt
    same = bundled(["questions"], 12)
    rows = [
        records.Record(i, 0, s.key, s.references[0], 1, 1, 2, [2, 1], 1, asdict(Cost()))
        for i, s in enumerate(same)
    ]
    wrong = [replace(r, answer="nothing") for r in rows]
    found = report.figures(same, {"unpruned": rows, "other": wrong}, "words")
    assert (
        found["unpruned"]["questions exact"]["value"] == 100
        and found["other"]["questions exact"]["value"] == 0
    )
    assert found["other"]["questions exact"]["difference"]["high"] == -100
    assert found["other"]["agreement"]["value"] == 0
    found = report.figures(
        same, {"unpruned": rows, "other": wrong, "third": rows}, "words", against="other"
    )
    assert found["third"]["questions exact"]["against"]["low"] == 100
    assert found["third"]["questions exact"]["difference"]["value"] == 0
    assert found["unpruned"]["questions exact"]["against"]["low"] == 100
    assert "against" not in found["other"]["questions exact"]
    alone = report.figures(same[:3], {"unpruned": rows[:3], "other": wrong[:3]}, "words")
    gap = alone["other"]["questions exact"]["difference"]
    assert gap["value"] == -100 and math.isnan(gap["low"])  # one picture shows nothing of others


def test_tasks_are_counted_by_samples_or_by_pictures() -> None:
    """Pictures bring all questions on them; a limit cuts in the middle; splits share no picture."""
    whole = bundled(["descriptions", "questions"], first=5, pictures=4)
    assert {s.group for s in whole} == {f"test-{i}" for i in range(5, 9)}
    asked = [s for s in whole if s.task == "questions"]
    assert len(whole) - len(asked) == 4 and len(asked) > 4 * 4
    assert len({(s.group, s.kind) for s in asked}) == len(asked)
    cut = bundled(["questions"], 7, first=5, pictures=4)
    assert [s.key for s in cut] == [s.key for s in asked[:7]]
    other = bundled(["questions"], first=5, pictures=4, split="val")
    assert {s.group for s in other} == {f"val-{i}" for i in range(5, 9)}
    assert {s.prompt for s in other} != {s.prompt for s in asked}
    with pytest.raises(ValueError, match="endless"):
        bundled(["questions"])


def test_lines_of_a_file_part_at_line_feeds_alone(tmp_path: Path) -> None:
    """JSON may hold other separators as they are, and editors put a byte-order mark in front."""
    draw(sample("test", 0)).image.save(tmp_path / "a.png")
    row = {
        "image": "a.png",
        "prompt": "what\u2028is it, ö?",
        "reference": "a dog\u0085",
        "metric": "exact",
    }
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for _ in range(2))
    (tmp_path / "mine.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode() + b"\r\n")
    assert [(s.prompt, s.references) for s in from_file(tmp_path / "mine.jsonl")] == [
        (row["prompt"], (row["reference"],))
    ] * 2


def test_what_is_no_number_is_null_in_files(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [float("nan"), 1.5]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [None, 1.5]}


def test_the_tasks_of_lmms_eval_are_written_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / "a: b #c"
    assert tasks.main([str(odd), "2"]) == 0
    assert (
        json.dumps(str((odd / "questions.jsonl").resolve()))
        in (odd / "foveate_questions.yaml").read_text()
    )
    (tmp_path / "file").write_text("")
    for argv in (
        [],
        ["a", "b", "c"],
        [str(odd), "many"],
        [str(odd), "0"],
        [str(tmp_path / "file")],
    ):
        assert tasks.main(argv) == 2
        assert capsys.readouterr().err.startswith("error: ")
