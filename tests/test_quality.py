"""Slow: the bundled model on held-out pictures. Floors against regressions, a little below what was measured."""

from __future__ import annotations

import pytest

import foveate
from foveate.demo import evaluate
from foveate.world.easyvqa import EasyVQA

FLOORS = {
    "object recall": 0.92,
    "object precision": 0.92,
    "color": 0.95,
    "shape": 0.93,
    "count": 0.82,
    "existence": 0.93,
    "position": 0.95,
    "relation": 0.9,
}


@pytest.mark.slow
def test_held_out_scenes_and_a_control() -> None:
    loaded = foveate.load("scenes")
    asked = list(evaluate.questions("val", 80))
    full = evaluate.judge("all", asked, evaluate.answer(loaded, asked, []))
    for key, floor in FLOORS.items():
        assert full.figures[key] > floor, key
    half = [foveate.methods.random(layer=0, keep=0.5)]
    hurt = evaluate.judge("half", asked, evaluate.answer(loaded, asked, half))
    assert hurt.figures["object recall"] < full.figures["object recall"] - 0.1


@pytest.mark.slow
def test_easy_vqas_own_test_split() -> None:
    data = EasyVQA.find()
    assert data is not None
    asked = list(evaluate.easy_questions(data, 60))
    found = evaluate.judge("all", asked, evaluate.answer(foveate.load("scenes"), asked, []))
    assert found.figures["easy-vqa"] > 0.97
