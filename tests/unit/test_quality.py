"""Slow: the bundled model on held-out pictures. Floors against regressions, a little below what was measured."""

from __future__ import annotations

import pytest

import foveate
from foveate.eval.tasks import bundled
from judging import found

FLOORS = {
    "descriptions object-recall": 92,
    "descriptions object-precision": 92,
    "questions/color exact": 95,
    "questions/shape exact": 93,
    "questions/count exact": 82,
    "questions/existence exact": 93,
    "questions/position exact": 95,
    "questions/relation exact": 90,
}


@pytest.mark.slow
def test_held_out_scenes_and_a_control() -> None:
    loaded = foveate.load("scenes")
    full = found(loaded, bundled(["descriptions", "questions"], split="val", pictures=80))
    for key, floor in FLOORS.items():
        assert full[key] > floor, key
    half = [foveate.methods.random(layer=0, keep=0.5)]
    hurt = found(loaded, bundled(["descriptions"], split="val", pictures=80), half)
    assert hurt["descriptions object-recall"] < full["descriptions object-recall"] - 10


@pytest.mark.slow
def test_easy_vqas_own_test_split() -> None:
    assert found(foveate.load("scenes"), bundled(["easy-vqa"], pictures=60))["easy-vqa exact"] > 97
