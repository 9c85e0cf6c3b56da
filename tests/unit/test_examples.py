"""Examples and scripts run as they stand."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_example_of_an_own_method(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "own_method.py"), run_name="__main__")
    full, fewer = capsys.readouterr().out.splitlines()
    assert full.startswith("[196, 196, 196, 196, 196, 196, 196, 196]")
    assert fewer.startswith("[196, 196, 196, 184, 172, 160, 148, 136]")


def test_the_example_of_a_pipeline(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "pipeline.py"), run_name="__main__")
    said, kept = capsys.readouterr().out.splitlines()
    assert len(said.split()) > 5 and kept == "25% of the visual tokens were kept"


def test_readme_and_model_card_say_what_was_measured() -> None:
    """Their figures are those of docs/results/*.json, as benchmarks/tables.py renders them."""
    tables = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    assert tables["render"]() in tables["README"].read_text()
    for name, card in tables["CARDS"].items():
        assert tables["render_card"](name) in card.read_text()


@pytest.mark.parametrize("script", ["report", "ablations"])
def test_pages_of_results_say_what_was_measured(
    script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/results.md and docs/ablations.md are what the scripts render of docs/results/."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # as for a script that is run
    page = runpy.run_path(str(ROOT / "benchmarks" / f"{script}.py"))
    assert page["render"]() == page["PAGE"].read_text()
