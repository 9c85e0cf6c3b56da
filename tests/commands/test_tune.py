"""`foveate tune` as its users type it: right, resumed, shared, and with bad input."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import foveate
from foveate.cli.app import run
from foveate.tune.setting import choose, portfolio
from foveate.tune.setting.choose import Tuning
from models.saved import save

FEW = (  # of the portfolio
    "divprune:keep=?,weigh=nearest,merge=mean",
    "fastv:layer={early},keep=?",
    "random:layer=0,keep=?",
)
ASK = ["--tasks", "questions", "--pictures", "10"]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small portfolio at two costs."""
    monkeypatch.setattr(portfolio, "_LINES", FEW)
    monkeypatch.setattr(portfolio, "LEVELS", (0.6, 0.3))
    monkeypatch.setattr("foveate.cli.tune.presets", lambda family, name: [])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    found = capsys.readouterr()
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", found.out + found.err).split())


@pytest.mark.usefixtures("short")
def test_a_setting_is_chosen_certified_written_and_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scenes: Any
) -> None:
    out, data = tmp_path / "found.json", rows(tmp_path, *asked(tmp_path, 10))
    options = ["--loss", "60%", "--confidence", "80%", "--out", str(out), "--data", str(data)]
    assert run(["tune", "scenes", *options]) == 0
    told = said(capsys)
    body = json.loads(out.read_text())
    found = body["certificate"]
    assert found["holds"] and found["sentence"] in told and "With 80 % confidence" in told
    assert found["tested"]["pictures"] == 7 and found["cost"] < 0.65
    tried = {row["method"]: row for row in body["tried"]}
    assert body["method"] in tried or body["method"] == "schedule:searched"
    assert any(method.startswith("random:") for method in tried)
    assert body["data"]["choose"]["examples"] == body["data"]["choose"]["pictures"] == 3
    page = (tmp_path / "found.html").read_text()
    assert found["sentence"].split(",")[0] in page and page.count("<article") == 7
    assert "<script" not in page and "http:" not in page and "https:" not in page

    assert (
        run(["generate", "scene:3", "How many shapes are there?", "--method", f"tuned:{out}"]) == 0
    )
    kept = re.search(r"kept (\d+)% of", said(capsys))
    assert kept and int(kept[1]) < 70
    inputs = scenes.inputs([foveate.cli.options.picture("scene:3")], "How many shapes are there?")
    with foveate.apply(scenes.model, f"tuned:{out}"), torch.inference_mode():
        ours = scenes.model(**inputs).logits
    if body["method"] != "schedule:searched":
        with foveate.apply(scenes.model, body["method"]), torch.inference_mode():
            assert torch.equal(scenes.model(**inputs).logits, ours)

    mine = run(["tune", "scenes", *options, "--json"])  # everything is known now
    again = json.loads(capsys.readouterr().out)
    for one in (again, body):  # what it took, of which nothing ran again; and last digits
        for key in ("search", "scores"):
            (one["schedule"] or {}).pop(key, None)
    assert mine == 0 and again == body


@pytest.mark.usefixtures("short")
def test_a_killed_run_goes_on_to_the_same_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    data = rows(tmp_path, *asked(tmp_path, 16))
    options = ["--data", str(data), "--loss", "60%", "--no-search"]
    for name, stops in (("whole", []), ("torn", [3, 7])):
        out = tmp_path / f"{name}.json"
        command = ["tune", "scenes", *options, "--out", str(out)]
        for stop in stops:
            count = 0
            note = choose.Journal.add

            def add(self: Any, key: str, value: Any, stop: int = stop, note: Any = note) -> None:
                nonlocal count
                count += 1
                if count > 2 * stop:
                    raise KeyboardInterrupt
                note(self, key, value)

            with monkeypatch.context() as patch:
                patch.setattr(choose.Journal, "add", add)
                assert run(command) == 130
            assert not out.exists()
        assert run(command) == 0
        found.append(json.loads(out.read_text()))
    said(capsys)
    assert found[0] == found[1]


@pytest.mark.usefixtures("short")
def test_a_folder_of_another_tuning_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tuning, "run", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    command = ["tune", "scenes", "--out", str(tmp_path / "x.json"), *ASK]
    assert run([*command, "--loss", "60%"]) == 130
    said(capsys)
    assert run([*command, "--loss", "50%"]) == 2
    assert "another search (it differs in wish)" in said(capsys)


def rows(folder: Path, *texts: str) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(texts))
    return path


def asked(folder: Path, count: int) -> list[str]:
    """Rows without answers about small pictures, and the pictures."""
    for number in range(count):
        foveate.cli.options.picture(f"scene:{number}").save(folder / f"{number}.png")
    return [
        json.dumps(
            {"image": f"{n}.png", "prompt": "How many shapes are there?", "max_new_tokens": 3}
        )
        for n in range(count)
    ]


@pytest.mark.usefixtures("short")
def test_rows_without_answers_do_and_bad_rows_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = asked(tmp_path, 8)
    bad = ["{", '{"image": "gone.png", "prompt": "what?"}', '{"prompt": "what?"}']
    data = rows(tmp_path, *good, *bad)
    command = ["tune", "scenes", "--data", str(data), "--loss", "10%", "--out"]
    assert run([*command, str(tmp_path / "x.json"), "--no-search"]) == 0
    told = said(capsys)
    assert "not used: rows.jsonl:9:" in told and "not used: rows.jsonl:10:" in told
    assert "rows.jsonl:11: the row has no image" in told
    body = json.loads((tmp_path / "x.json").read_text())
    assert body["data"]["unusable"] == 3 and not body["certificate"]["holds"]
    assert "NOT certified: 5 pictures are too few" in told or "Nothing cheaper" in told


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        ([], "one of --loss and --speed"),
        (["--loss", "1%", "--speed", "2x"], "one of --loss and --speed"),
        (["--loss", "120%"], "--loss '120%'; expected a share such as 1% or 0.01"),
        (["--loss", "0"], "--loss '0'; expected a share"),
        (["--loss", "small"], "--loss 'small'"),
        (["--speed", "fast"], "--speed 'fast'; expected a factor above 1"),
        (["--loss", "1%", "--confidence", "100%"], "--confidence '100%'"),
        (["--loss", "1%", "--loss-of", "all"], "expected one of answers, words, score"),
        (["--loss", "1%", "--cost", "euros"], "expected one of flops, kv, seconds"),
        (["--loss", "1%", "--pictures", "3"], "has 3 pictures; expected 8 or more"),
        (["--loss", "1%", "--data", "gone.jsonl"], "there is no file gone.jsonl"),
        (["--loss", "1%", "--also", "fastvv:keep=?", *ASK], "unknown method 'fastvv'"),
        (["--loss", "1%", "--out", "x.txt"], "expected a name that ends in .json"),
        (["--loss", "1%", "--out", "gone/x.json"], "there is no folder gone"),
    ],
)
def test_bad_input_is_one_line(
    more: list[str],
    wrong: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["tune", "scenes", "--out", "x.json", *more]) == 2
    told = said(capsys)
    assert wrong in told and "Traceback" not in told and not (tmp_path / "x.json").exists()


@pytest.mark.usefixtures("short")
def test_scores_need_right_answers_and_speed_has_a_cap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = rows(tmp_path, *asked(tmp_path, 8))
    out = ["--out", str(tmp_path / "x.json")]
    scored = ["tune", "scenes", "--data", str(data), "--loss", "5%", "--loss-of", "score", *out]
    assert run(scored) == 2
    assert "8 of 8 examples have none, such as rows/" in said(capsys)
    monkeypatch.setattr(choose, "most", lambda *asked: 3.25)
    assert run(["tune", "scenes", "--data", str(data), "--speed", "1000x", *out]) == 2
    assert re.search(
        r"1000x is out of reach: .* no visual-token method can be more than 3.25x", said(capsys)
    )


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_a_speed_is_measured_and_its_loss_bounded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = rows(tmp_path, *asked(tmp_path, 8))
    out = tmp_path / "x.json"
    command = ["tune", "scenes", "--data", str(data), "--speed", "1.01x", "--batch", "8"]
    code = run([*command, "--new-tokens", "2", "--no-search", "--out", str(out)])
    told = said(capsys)
    if code == 2:  # a loaded machine: then it says what it measured
        assert "as fast here; the fastest is" in told
        return
    found = json.loads(out.read_text())["certificate"]
    assert found["faster"] >= 1.01 and 0 < found["risk"] <= 1 and "With 95 % confidence" in told


def test_the_file_of_another_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save("qwen2_5_vl", tmp_path / "other")
    foveate.cli.options.picture("scene:1").save(tmp_path / "a.png")
    spec = ["--method", "tuned:scenes", "--model", str(tmp_path / "other")]
    assert run(["generate", str(tmp_path / "a.png"), "what?", *spec]) == 2
    assert "tuned for a llava model of 8 layers; this one is qwen2_5_vl" in said(capsys)
    assert run(["generate", "scene:1", "what?", "--method", "tuned:gone.json"]) == 2
    assert "there is no such file" in said(capsys)


@pytest.mark.slow
def test_processes_share_a_tuning(tmp_path: Path) -> None:
    found = []
    for count in (1, 2):
        out = tmp_path / f"{count}.json"
        launch = ["torch.distributed.run", f"--nproc-per-node={count}", "--master-port=29641", "-m"]
        start = launch if count > 1 else []
        command = [sys.executable, "-m", *start, "foveate", "tune", "scenes", "--loss", "40%"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, "--out", str(out), *ASK],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(out.read_text()))
    assert found[0]["method"] == found[1]["method"]
    for ours, theirs in zip(*(one["tried"] for one in found), strict=True):
        assert ours["method"] == theirs["method"]
        assert ours["divergence"] == pytest.approx(theirs["divergence"], rel=1e-3, abs=1e-6)
