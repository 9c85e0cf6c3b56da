"""`foveate export`: a bundled model as a folder that vLLM and transformers load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import foveate
from foveate.cli.app import run
from foveate.models.smol.base import at_hand
from foveate.world.draw import draw
from foveate.world.scenes import sample

TOWER = "model.vision_tower."
MODELS = [
    "scenes",
    pytest.param(
        "smol",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(not at_hand(), reason="its language model is not installed"),
        ],
    ),
]


@pytest.mark.parametrize("name", MODELS)
def test_the_folder_holds_the_same_model(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / name
    assert run(["export", name, str(folder)]) == 0
    assert f"foveate serve {folder}" in "".join(capsys.readouterr().err.split("\n"))
    bundled, written = foveate.load(name), foveate.load(str(folder))
    expected = bundled.model.state_dict()
    for key, value in written.model.state_dict().items():
        assert torch.equal(value, expected[key]), key
    picture, text = draw(sample("test", 0)).image, "what color is the star?"
    ours, theirs = written.inputs([picture], text), bundled.inputs([picture], text)
    assert all(torch.equal(value, ours[key]) for key, value in theirs.items())
    assert written.prompt(1, text) == bundled.prompt(1, text)


def test_vllm_finds_its_class_and_the_names_of_the_hub(tmp_path: Path) -> None:
    assert run(["export", "scenes", str(tmp_path)]) == 0  # an empty folder may be there
    said: dict[str, Any] = json.loads((tmp_path / "config.json").read_text())
    assert said["architectures"] == ["LlavaForConditionalGeneration"]
    names = set(load_file(tmp_path / "model.safetensors"))
    tower = {name for name in names if name.startswith(TOWER)}
    assert tower and all(name.startswith(f"{TOWER}vision_model.") for name in tower)
    assert "lm_head.weight" not in names and said["tie_word_embeddings"]
    _, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "nothing", str(tmp_path / "out")]) == 2
    assert "expected a bundled one" in capsys.readouterr().err
    (tmp_path / "mine.txt").write_text("kept")
    for there in (tmp_path, tmp_path / "mine.txt"):
        assert run(["export", "scenes", str(there)]) == 2
        assert "there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
