"""Answers by beams, by sampling and without a cache: whose work they are, and that they come back the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from foveate.cli.app import run
from foveate.cost.flops import shapes
from foveate.eval.answers import answer
from foveate.eval.decoding import Decoding
from foveate.eval.tasks import bundled
from foveate.methods import parse
from foveate.models.load import load
from foveate.models.loaded import Loaded

DYRATE = "dyrate:predictor=scenes-0.5"


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load("scenes")


def answers(loaded: Loaded, spec: str = "", **knobs: Any) -> list[Any]:
    some = bundled(["questions"], 3)
    return answer(
        loaded, some, parse(spec) if spec else [], shapes(loaded.model), decoding=Decoding(**knobs)
    )


def test_beams_are_their_samples_work(loaded: Loaded) -> None:
    one, two = answers(loaded), answers(loaded, num_beams=2)
    assert [r.cost["prefill"] * 2 for r in one] == pytest.approx([r.cost["prefill"] for r in two])
    assert [r.key for r in one] == [r.key for r in two] and all(r.answer for r in two)
    assert [r.kept for r in one] == [r.kept for r in two]
    less = answers(loaded, DYRATE, num_beams=2)
    assert all(a.cost["prefill"] < b.cost["prefill"] for a, b in zip(less, two, strict=True))


def test_drawn_answers_hang_on_the_seed_and_on_nothing_else(loaded: Loaded) -> None:
    hot = {"temperature": 9.0, "top_p": 0.99}
    torch.manual_seed(1)
    first = answers(loaded, seed=3, **hot)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    assert answers(loaded, seed=3, **hot) == first
    assert torch.equal(torch.random.get_rng_state(), before), "nobody else's numbers were drawn"
    assert answers(loaded, seed=4, **hot) != first
    assert answers(loaded, top_k=1) == answers(loaded), "the likeliest of one is greedy"


def test_without_a_cache_the_words_are_the_same_and_the_work_is_not(loaded: Loaded) -> None:
    cached, anew = answers(loaded), answers(loaded, cache=False)
    assert [r.answer for r in cached] == [r.answer for r in anew]
    for a, b in zip(cached, anew, strict=True):
        assert b.cost["kv_bytes"] == b.cost["decode"] == 0
        assert b.cost["prefill"] == pytest.approx(b.tokens * a.cost["prefill"], rel=0.05), (
            "each step runs it all"
        )
    assert (
        answers(loaded, f"{DYRATE},semantics=recompute,decode=true", cache=False)[0].cost["prefill"]
        < anew[0].cost["prefill"]
    )
    with pytest.raises(ValueError, match="without a KV cache"):
        answers(loaded, DYRATE, cache=False)


@pytest.mark.parametrize(
    "knobs", [{"num_beams": 0}, {"top_p": 0.0}, {"temperature": 0.0}, {"num_beams": 2, "top_k": 5}]
)
def test_knobs_that_make_no_sense_are_refused(knobs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(knobs))}="):
        Decoding(**knobs)


def test_the_command_tells_runs_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "eval",
        "--tasks",
        "questions",
        "--limit",
        "2",
        "--tokenizer",
        "words",
        "--save",
        str(tmp_path / "r"),
    ]
    assert run([*argv, "--num-beams", "2"]) == 0
    assert run(argv) == 2
    assert "decoding" in capsys.readouterr().err
    assert run([*argv, "--num-beams", "2", "--top-k", "2"]) == 2
