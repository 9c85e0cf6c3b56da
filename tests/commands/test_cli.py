"""The command line as its user meets it: good input, bad input, no traceback."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

import foveate
from foveate.cli import demo, tables
from foveate.cli.app import run
from foveate.cli.methods import GROUPS, describe, of_every_method
from foveate.cost.flops import Cost
from foveate.engine.trace import Trace
from foveate.methods import parse
from foveate.models.prompts import prompt
from foveate.timing import comparison
from foveate.timing.comparison import Contestant
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
        "--compare",
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


QUESTION = "how many shapes are there?"
METHOD = "divprune:keep=0.25"


def test_generate_streams_one_method_and_states_no_speed_up(
    picture: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    args = ["generate", picture, "Describe the image in detail.", "--method", METHOD]
    assert run([*args, "--max-new-tokens", "12"]) == 0
    said = capsys.readouterr()
    facts = " ".join(said.err.split())
    assert "kept 25% of 196 visual tokens" in facts and "one cold run" in facts
    assert re.findall(r"[\d.]+x", facts) == ["0.28x", "0.35x"]  # of FLOPs and cache, none of time
    assert (
        run([*args, "--max-new-tokens", "12", "--json", "--trace", str(tmp_path / "t.json")]) == 0
    )
    whole = capsys.readouterr()
    (row,) = json.loads(whole.out)["rows"]
    assert row["answers"] == [said.out.strip()] and "faster" not in row
    assert "wrote" in whole.err and f"what {METHOD} kept" in " ".join(whole.err.split())
    assert run([*args, "--max-new-tokens", "12", "--compare", "--repeats", "1", "--json"]) == 0
    plain, fewer = json.loads(capsys.readouterr().out)["rows"]
    assert fewer["answers"] == row["answers"] and set(fewer["faster"]) == {"first", "further"}
    for key in ("prefill", "kv_bytes"):  # the closed form and the recorded run agree
        assert row["flops"]["ratio"][key] == pytest.approx(fewer["flops"]["ratio"][key], abs=0.01)
    assert plain["flops"]["tower"] == row["flops"]["tower"]


def test_generate_compares_several_methods_in_a_table(
    picture: str, capsys: pytest.CaptureFixture[str], terminal: Callable[[int], None]
) -> None:
    args = ["generate", picture, QUESTION, "--max-new-tokens", "3", "--repeats", "1"]
    assert run([*args, "--method", METHOD, "--method", "vtw:layer=4"]) == 0
    wide = capsys.readouterr().out
    assert "unpruned" in wide and "first token" in wide
    assert max(map(len, wide.splitlines())) <= 80
    terminal(40)
    assert run([*args, "--method", METHOD, "--compare"]) == 0
    narrow = capsys.readouterr().out
    assert (
        re.search(r"first token: \d+ ms \d+\.\d\dx", narrow)
        and max(map(len, narrow.splitlines())) <= 40
    )


def test_a_ratio_above_its_cap_is_marked() -> None:
    rows = comparison.rows_of(["fastv", "vtw:layer=1"])
    for row, ratio in zip(rows, (1.0, 2.18, 1.5), strict=True):
        row.traces, row.first, row.further = [Trace(1)], [0.1], [0.01]
        row.cost = Cost(prefill=1.0, kv_bytes=1.0)
        if row is not rows[0]:
            row.faster = {"first": [ratio], "further": [0.9]}
            row.cap = {"first": [1.58], "further": [1.1]}
    assert [row.exceeded for row in rows] == [[], ["first"], []]
    out = Console(file=io.StringIO(), width=100)
    out.print(tables.compared(rows))
    text = " ".join(out.file.getvalue().split())  # type: ignore[attr-defined]
    assert "2.18x!" in text and "1.50x!" not in text and "the measurement is wrong there" in text
    assert not Contestant("none", None).exceeded


@pytest.mark.parametrize("way", ["argument", "standard input", "@file", "file", "option", "dashes"])
def test_a_prompt_comes_from_anywhere(
    way: str,
    picture: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text(QUESTION, encoding="utf-16" if way == "@file" else "utf-8")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(QUESTION.encode())))
    ways = {
        "argument": [picture, QUESTION],
        "standard input": [picture, "-"],
        "@file": [picture, f"@{file}"],
        "file": [picture, "--prompt-file", str(file)],
        "option": [picture, "--prompt", QUESTION],
        "dashes": [picture, "--", QUESTION],
    }
    assert run(["generate", "--max-new-tokens", "2", "--json", *ways[way]]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == QUESTION


@pytest.mark.parametrize(
    "prompt",
    [
        "-5 degrees: is that what it shows?",
        "- what is it?",
        "--model is what it says here",
        "x" * 300,
        "é" * 3000,
    ],
)
def test_a_prompt_may_look_like_an_option_or_be_long(
    prompt: str, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--max-new-tokens", "1", "--json"]
    assert run(["generate", picture, prompt, *more]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == prompt


def test_a_prompt_may_be_the_name_of_a_file(
    picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--max-new-tokens", "1", "--json"]
    for said in (picture, "@home", "-"):
        assert run(["generate", picture, "--prompt", said, *more]) == 0
        assert json.loads(capsys.readouterr().out)["prompt"] == said


def test_an_error_does_not_print_a_long_prompt(
    picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "word " * 10_000
    for args in ([words], [picture, f"@{words}"], ["--prompt", words], [words, "what?"]):
        assert run(["generate", *args]) == 2
        assert len(capsys.readouterr().err) < 1000


def test_methods_are_listed_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods", "--json"]) == 0
    listed = {m["name"]: m for m in json.loads(capsys.readouterr().out)}
    assert set(listed) == set(foveate.methods.factories())
    assert "2403.06764" in listed["fastv"]["paper"] and listed["fastv"]["arxiv"] == "2403.06764"
    assert set(listed["fastv"]["knobs"]) == {"layer", "keep", "rate", "within", "ranking"}
    assert [m for m in listed if not listed[m]["arxiv"]] == ["downsample", "random"]
    for m in listed.values():
        assert m["deviations"] and all(k["meaning"] for k in m["knobs"].values())
        assert 3 <= len(m["idea"].split()) <= 8 and m["group"] in GROUPS and m["where"]


@pytest.mark.parametrize("columns", [80, 140])
def test_every_method_has_a_line_under_its_group(
    columns: int, capsys: pytest.CaptureFixture[str], terminal: Callable[[int], None]
) -> None:
    terminal(columns)
    assert run(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    for name in foveate.methods.factories():
        assert sum(line.startswith(f"{name} ") for line in lines) == 1
    # a line each, beside the groups' titles and two lines of head
    assert lines.index("") == len(foveate.methods.factories()) + len(GROUPS) + 2
    assert all(group in lines for group in GROUPS)


def test_a_group_is_where_a_method_acts() -> None:
    """Of all that can be made without a file or a number of one's own."""
    seen = set()
    for name, factory in foveate.methods.factories().items():
        try:
            method = factory()
        except TypeError:
            continue
        group = describe(name)["group"]
        acts = [[method.drops(layer, step) for layer in range(32)] for step in range(64)]
        seen.add(group)
        if group == GROUPS[0]:
            assert acts[0][0] and not any(acts[0][1:])
        assert any(acts[0][1:]) or group != GROUPS[1]
        assert any(map(any, acts[1:])) == (group == GROUPS[2]), name
    assert seen == set(GROUPS)


def test_one_method_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods", "fastv"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in ("the last prompt token attends to most", "deviations: the score", "2403.06764"):
        assert part in said
    assert "0.57x the prefill FLOPs and 0.65x the KV cache" in said  # 30 of 32 layers see half
    for knob, meaning in of_every_method().items():
        assert len(meaning) > 20 and said.count(f" {knob} {meaning[:12]}") == 1
    assert run(["methods", "dymu"]) == 0
    assert "depends on the picture" in " ".join(capsys.readouterr().out.split())
    assert run(["methods", "dyrate"]) == 0
    assert "no default" in " ".join(capsys.readouterr().out.split())
    assert run(["methods", "fastvv"]) == 2
    assert "did you mean 'fastv'" in " ".join(capsys.readouterr().err.split())


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
    page = (tmp_path / "demo.html").read_text()
    assert body["page"] == str(tmp_path / "demo.html") and "fastv" in page
    assert run(args[:-1]) == 0
    said = capsys.readouterr()
    text = said.out
    assert "drawn:" in text and "model: scenes" in text and "foveate explore IMAGE" in text
    assert "wrote" in said.err and "demo.html" in said.err
    row = r"^recommended( +\d+( \d+-\d+)?){3}( +0\.\d+x){2} +\d\.\dx/\d\.\dx"
    assert re.search(row, text, re.MULTILINE)  # all figures, in 80 columns
    for name in ("recommended", "G-Search", "DyRate", "FastV", "random"):
        assert f"{name} is {dict(map(reversed, demo.LABELS['scenes'].items()))[name]}" in text


@pytest.mark.parametrize("model", demo.LABELS)
def test_demo_shows_methods_that_fit_the_model(model: str) -> None:
    """DyRate's predictor and the schedule are bundled, and were made for that model."""
    for spec in demo.LABELS[model]:
        (method,) = parse(spec)
        depth = {"scenes": 8, "smol": 30}[model]
        method.check(depth, "llava")


def test_a_schedule_goes_by_its_bundled_name(tmp_path: Path) -> None:
    assert parse("schedule:scenes-gsearch")[0].name == "schedule:scenes-gsearch"
    with pytest.raises(ValueError, match=r"there is no such file; bundled are .*scenes-gsearch"):
        parse("schedule:scenes-gsearchh")


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
        (["generate", "PICTURE", " "], "the prompt is empty"),
        (["generate", "PICTURE", "@nowhere.txt"], "there is no file 'nowhere.txt'"),
        (["generate", "PICTURE", "@PICTURE"], "there is no file"),
        (["generate", "PICTURE", "--prompt-file", "PICTURE"], "save it as UTF-8 text"),
        (["generate", "PICTURE", "--prompt-file", "PICTURE", "--prompt", "x"], "give one of them"),
        (["generate", "PICTURE", "what?", "--compare"], "name one by --method"),
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


def test_an_option_with_a_value_of_several_words_is_no_prompt(
    picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["generate", picture, "--max-new-tokens", "1", "--json"]
    assert run([*args, f"--prompt={QUESTION}"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == QUESTION
    place = tmp_path / "two words.json"
    assert run([*args, QUESTION, f"--trace={place}"]) == 0 and place.is_file()
    assert json.loads(capsys.readouterr().out)["prompt"] == QUESTION


def test_a_picture_alone_is_no_list_of_pictures(scenes: Any) -> None:
    with pytest.raises(ValueError, match="got str for the pictures; expected a list"):
        scenes.inputs("picture.png", "what?")
