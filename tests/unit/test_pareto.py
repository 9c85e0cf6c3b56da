"""Quality against work: what a line is, what the front is, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foveate.cli.app import run
from foveate.explore.pareto import front, line_of, lines


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("fastv:layer=2,keep=0.5", "fastv:layer=2"),
        ("pdrop:keep=0.543", "pdrop"),
        ("visionzip:keep=0.5,merging=sum", "visionzip:merging=sum"),
        ("dymu:threshold=0.9", "dymu"),
        ("vscan1:keep=0.665+vscan2", "vscan1+vscan2"),
        ("score=mix,schedule=pdrop:keep=0.543", "score=mix,schedule=pdrop"),
        ("schedule:a/psigmoid-mix-0.25.json", "schedule:psigmoid-mix"),
        (
            "score=random,schedule=schedule:a/psigmoid-mix-0.5.json",
            "score=random,schedule=schedule:psigmoid-mix",
        ),
        ("schedule:g.json+dyrate:predictor=scenes-0.33", "schedule:g+dyrate:predictor=scenes-0.33"),
    ],
)
def test_a_line_is_a_method_at_any_budget(spec: str, name: str) -> None:
    assert line_of(spec) == name


def test_the_front_is_what_nothing_beats() -> None:
    found = {
        "a": [(0.25, 50.0), (0.5, 60.0)],
        "b": [(0.25, 40.0), (0.4, 70.0)],
        "unpruned": [(1.0, 70.0)],
    }
    assert front(found) == [(0.25, 50.0), (0.4, 70.0)]
    everyone = [point for points in found.values() for point in points]
    for work, value in everyone:
        beaten = any(w <= work and v >= value and (w, v) != (work, value) for w, v in everyone)
        assert beaten != ((work, value) in front(found))


def body(**points: tuple[float, float]) -> dict[str, Any]:
    rows = {
        spec: {
            "figures": {"captions cider": {"value": value}},
            "work": {"tokens": work, "flops": work, "bytes": work},
        }
        for spec, (work, value) in points.items()
    }
    return {"model": "scenes", "methods": rows}


def test_the_command_draws_reports_and_refuses_what_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, found in enumerate(
        (body(unpruned=(1, 9), fastv=(0.5, 8)), body(unpruned=(1, 9), fastv=(0.25, 4)))
    ):
        (tmp_path / f"{number}.json").write_text(json.dumps(found))
    assert lines([body(unpruned=(1, 9)), body(unpruned=(1, 9))], "captions cider", "flops") == {
        "unpruned": [(1, 9)]
    }
    command = [
        "plot",
        "pareto",
        str(tmp_path / "0.json"),
        str(tmp_path / "1.json"),
        "--out",
        str(tmp_path / "p.png"),
    ]
    assert run([*command, "--figure", "captions cider"]) == 0
    assert (tmp_path / "p.png").stat().st_size > 1000
    assert "fastv: 4.0 at 0.250 of the tokens" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "bad.json").write_text('{"methods": {"fastv": 1}}')
    for args, said in (
        (command, "no figure 'descriptions object-recall' of unpruned; there are 'captions cider'"),
        ([*command, "--figure", "captions cider", "--work", "money"], "unknown work 'money'"),
        ([*command[:2], str(tmp_path / "bad.json"), *command[4:]], "no report of"),
        ([*command[:2], str(tmp_path / "gone.json"), *command[4:]], "no report of"),
        ([*command[:-1], str(tmp_path / "p.gif")], ".png, .svg or .pdf"),
    ):
        assert run(args) == 2
        heard = " ".join(capsys.readouterr().err.split())
        assert said in heard and "Traceback" not in heard
