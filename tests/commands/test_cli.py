"""The command line as its user meets it: good input, bad input, no traceback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

import foveate
from foveate.cli import demo
from foveate.cli.app import run
from foveate.cli.methods import of_every_method
from foveate.models.prompts import prompt
from foveate.world.draw import draw
from foveate.world.scenes import sample
from lab.__main__ import app as laboratory


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    draw(sample("test", 1)).image.save(path)
    return str(path)


def test_generate_prints_the_unpruned_model_first(
    picture: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trace = tmp_path / "trace.json"
    args = [
        "generate",
        picture,
        "Describe the image in detail.",
        "--method",
        "fastv:layer=2,keep=0.5",
        "--method",
        "vtw:layer=4",
    ]
    assert (
        run([*args, "--max-new-tokens", "6", "--repeats", "1", "--trace", str(trace), "--json"])
        == 0
    )
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["method"] for row in rows] == ["unpruned", "fastv:layer=2,keep=0.5", "vtw:layer=4"]
    assert [row["kept"] for row in rows] == [1.0, 0.625, 0.5]
    assert rows[1]["flops"]["ratio"]["prefill"] < 0.7
    assert all(row["answers"][0] and row["first_token_s"][0] > 0 for row in rows)
    kept = json.loads(trace.read_text())
    assert kept["fields"] == ["call", "step", "layer", "sample", "kept"]
    assert [row[4] for row in kept["kept"][:8]] == [196, 196, *[98] * 6]
    assert json.loads((tmp_path / "trace-2.json").read_text())["kept"][4][4] == 0


def test_generate_prints_a_table(picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(
            [
                "generate",
                picture,
                "how many shapes are there?",
                "--max-new-tokens",
                "3",
                "--repeats",
                "1",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "unpruned" in out and "first token" in out


def test_methods_are_listed_with_paper_and_knobs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods", "--json"]) == 0
    listed = {m["name"]: m for m in json.loads(capsys.readouterr().out)}
    assert set(listed) == set(foveate.methods.factories())
    assert "2403.06764" in listed["fastv"]["paper"]
    assert set(listed["fastv"]["knobs"]) == {"layer", "keep", "rate", "within", "ranking"}
    assert all(
        m["deviations"] and all(k["meaning"] for k in m["knobs"].values()) for m in listed.values()
    )
    assert run(["methods"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    below = said.partition("Every method also takes")[2]
    for knob, meaning in of_every_method().items():
        assert len(meaning) > 20 and said.count(f" {knob} {meaning[:12]}") == 1
        assert f" {knob} {meaning[:12]}" in below


def test_demo_shows_everything_side_by_side(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    args = [
        "demo",
        "--pictures",
        "1",
        "--held-out",
        "2",
        "--repeats",
        "1",
        "--out",
        str(tmp_path),
        "--json",
    ]
    args[1:1] = ["--model", "scenes"]
    assert run([*args, "--method", "fastv", "--method", "random:layer=2,keep=0.5"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert len(body["rows"]) == 3 and set(body["held_out"]) == {
        "unpruned",
        "fastv",
        "random:layer=2,keep=0.5",
    }
    assert (tmp_path / "test-0.png").exists()
    assert run(args[:-1]) == 0
    text = capsys.readouterr().out
    assert "drawn:" in text and "object recall" in text and "model: scenes" in text


def test_demo_takes_smol_where_its_language_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for language, ours, model in (
        (True, True, "smol"),
        (False, True, "scenes"),
        (True, False, "scenes"),
    ):
        monkeypatch.setattr(demo, "at_hand", lambda there=language: there)
        monkeypatch.setattr(demo, "ships", lambda name, there=ours: there)
        assert demo.chosen("auto") == model and demo.chosen("scenes") == "scenes"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["generate", "nowhere.png", "what is it?"], "there is no image 'nowhere.png'"),
        (["generate", __file__, "what is it?"], "as an image"),
        (["generate", "what is it?"], "expected at least one image"),
        (["generate", "PICTURE", "what?", "--method", "fastvv"], "did you mean 'fastv'"),
        (["generate", "PICTURE", "what?", "--method", "fastv:layr=1"], "did you mean 'layer'"),
        (["generate", "PICTURE", "what?", "--method", "vtw:layer=16"], "layers 0 to 7"),
        (["generate", "PICTURE", "what?", "--model", "/nowhere/at/all"], "cannot load a model"),
        (["generate", "PICTURE", "what?", "--model", "TEXT-ONLY"], "not a vision-language model"),
        (["generate", "PICTURE", "what?", "--dtype", "float12"], "unknown dtype"),
        (["generate", "PICTURE", "what?", "--trace", "/nowhere/t.json"], "no folder"),
        (["generate", "PICTURE", "what?", "--max-new-tokens", "0"], "max-new-tokens"),
        (["generate", "PICTURE", "what?", "--device", "cuda:77"], "cuda"),
        (["generate", "PICTURE", "what?", "--frobnicate"], "frobnicate"),
        (["generate", "PICTURE", "what?", "--device", "meta"], "expected cpu, cuda"),
        (["generate", "PICTURE", "what?", "--dtype", "float8_e4m3fn"], "unknown dtype"),
        (["generate", "PICTURE", "what?", "--method", "random:seed=10000000000"], "seed"),
        (
            ["generate", "PICTURE", "what?", "--method", "fastv:keep=0.5,rate=0.5"],
            "give one of them",
        ),
        (["generate", "PICTURE", "what?", "--method", "fastv:keep=0.5,keep=0.25"], "twice"),
        (["generate", "PICTURE", "what?", "--method", "fastv:keep=0.5,,"], "empty place"),
        (["generate", "PICTURE", "what?", "--method", "dyrate"], "dyrate needs predictor"),
        (
            ["generate", "PICTURE", "what?", "--method", "dyrate:predictor=nowhere"],
            "no predictor 'nowhere'",
        ),
        (["generate", "PICTURE", "PICTURE"], "last argument is the prompt"),
        (["generate", "PICTURE", " "], "last argument is the prompt"),
        (["demo", "--pictures", "7", "evaluate"], "unexpected extra argument"),
        (["demo", "--model", "llava"], "expected auto, scenes or smol"),
        (["frobnicate"], "frobnicate"),
        (["demo", "--method", "nothing"], "unknown method"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_2(
    args: list[str], said: str, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "TEXT-ONLY" in args:
        small = LlamaConfig(
            vocab_size=8,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
        )
        LlamaForCausalLM(small).save_pretrained(tmp_path)
    swap = {"PICTURE": picture, "TEXT-ONLY": str(tmp_path)}
    assert run([swap.get(a, a) for a in args]) == 2
    err = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().err).split())
    assert said.lower() in err.lower() and "Traceback" not in err and "error:" in err


def test_the_installed_command_answers() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "foveate", "--version"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout.strip() == f"foveate {foveate.__version__}"


def test_a_model_of_ones_own_without_a_chat_template_is_prompted_plainly() -> None:
    class Plain:
        image_token = "<image>"
        chat_template = None

    assert prompt(Plain(), 2, "what?") == "USER: <image> <image> what? ASSISTANT:"


@pytest.mark.parametrize(
    ("args", "said"),
    [(["train", "nothing"], "no recipe"), (["train", "--start", "/nowhere"], "model.safetensors")],
)
def test_the_laboratory_refuses_alike(
    args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(args, laboratory) == 2
    err = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().err).split())
    assert said in err and "Traceback" not in err and "error:" in err
