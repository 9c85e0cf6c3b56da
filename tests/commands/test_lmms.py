"""The lmms-eval plugin, offline, on the bundled model; `make test-lmms` runs it in an environment of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import foveate
from foveate.lmms import models, tasks

SCENES = Path(foveate.__file__).parent / "models" / "scenes"


def evaluate(folder: Path, method: str) -> subprocess.CompletedProcess[str]:
    tasks.write(folder / "tasks", 6)
    args = [
        sys.executable,
        "-m",
        "lmms_eval",
        "--model",
        "foveate_llava_hf",
        "--tasks",
        "foveate_questions",
    ]
    args += [
        "--model_args",
        f"pretrained={SCENES},device_map=cpu,device=cpu,method={method}",
        "--batch_size",
        "1",
    ]
    args += ["--include_path", str(folder / "tasks"), "--output_path", str(folder / "out")]
    return subprocess.run(args, capture_output=True, text=True, check=False, timeout=300)


def score(folder: Path, method: str) -> float:
    done = evaluate(folder, method)
    assert done.returncode == 0, done.stderr
    (result,) = (folder / "out").rglob("*results.json")
    return float(json.loads(result.read_text())["results"]["foveate_questions"]["exact,none"])


def test_the_method_is_applied(tmp_path: Path) -> None:
    pytest.importorskip("lmms_eval")
    whole, blind = score(tmp_path / "whole", ""), score(tmp_path / "blind", "vtw:layer=0")
    assert whole == 1.0 and blind < 0.9


def test_what_fails_is_not_scored_as_an_empty_answer(tmp_path: Path) -> None:
    pytest.importorskip("lmms_eval")
    done = evaluate(tmp_path, "vtw:layer=99")
    assert (
        "layers 0 to 7" in done.stderr + done.stdout
    )  # lmms-eval's command then still exits with 0
    assert not list((tmp_path / "out").rglob("*results.json"))


def test_every_wrapper_is_there_and_takes_a_method() -> None:
    pytest.importorskip("lmms_eval")
    assert {m.model_id for m in models.manifests()} == set(models.WRAPPED)
    for name in models.WRAPPED:
        assert getattr(models, name).is_simple is False


def test_our_task_is_written_with_its_data(tmp_path: Path) -> None:
    tasks.write(tmp_path, 3)
    rows = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and tasks.doc_to_visual(rows[0])[0].size == (224, 224)
    assert tasks.process_results(rows[0], [f" {rows[0]['answer'].upper()} "]) == {"exact": 1.0}
    assert tasks.process_results(rows[0], ["nothing"]) == {"exact": 0.0}
    assert str(tmp_path) in (tmp_path / "foveate_questions.yaml").read_text()
    with pytest.raises(AttributeError, match="no attribute"):
        _ = models.foveate_nothing
