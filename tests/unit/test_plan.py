"""`foveate cost`: the papers' own figures, and what a run then really costs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

import foveate
from foveate.cli.app import run
from foveate.cost import conventions
from foveate.cost.architecture import architecture
from foveate.cost.configurations import config_of
from foveate.cost.flops import cost_of_trace
from foveate.cost.plan import Request, cost_of, papers, request
from foveate.cost.vision import vision_flops
from foveate.methods import parse
from foveate.world.draw import draw
from foveate.world.scenes import sample
from models.tiny import FAMILIES, Layout, batch, model


def told(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, dict[str, dict[str, float]]]:
    assert run(["cost", *args, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["methods"]


def test_fastvs_figures(capsys: pytest.CaptureFixture[str]) -> None:
    """Table 1 prints 99.3 B a layer for LLaVA-1.5-7B and 54.6 B for K=2, R=50 % but no prompt length.

    612 tokens give 99.3; with 576 of them visual 54.8 follows, with 578 (whatever the paper's prompt was) 54.6.
    """
    spec = "fastv:layer=2,rate=0.5"
    for text, visual, want in ((36, 576, 54.8), (34, 578, 54.6)):
        found = told(
            capsys,
            "llava-1.5-7b",
            "--prompt-tokens",
            str(text),
            "--visual-tokens",
            str(visual),
            "--method",
            spec,
        )
        assert round(found["unpruned"]["papers"]["fastv"]["flops"] / 32e9, 1) == 99.3
        assert round(found[spec]["papers"]["fastv"]["flops"] / 32e9, 1) == want


def test_pyramiddrops_figure() -> None:
    """3.82 T for LLaVA-1.5-7B is its 576 visual tokens alone, with all three matrices of the MLP."""
    assert round(conventions.prefill([576] * 32, 0, 4096, 11008, "pyramiddrop") / 1e12, 2) == 3.82


def test_a_plan_is_what_a_run_costs() -> None:
    made, data = model("llava"), batch("llava", Layout(((3, 0, 5),) * 2))
    found = architecture(FAMILIES["llava"](), dtype="float32")
    asked = request(FAMILIES["llava"](), text=8, images=1, new_tokens=4, batch=2)
    for spec in ("random:layer=0,keep=0.5", "vtw:layer=2", "downsample:layer=1,keep=0.25"):
        with foveate.apply(made, *parse(spec)) as trace:
            made.generate(**data.inputs, max_new_tokens=4, do_sample=False)
        ran = cost_of_trace(
            foveate.cost.flops.shapes(made), trace, tower=vision_flops(made, data.inputs)
        )
        planned = cost_of(found, asked, parse(spec))
        assert (planned.prefill, planned.decode, planned.tower) == (
            ran.prefill,
            ran.decode,
            ran.tower,
        )
        assert (planned.kv_bytes, planned.head) == (ran.kv_bytes, ran.head)


@pytest.mark.parametrize(
    ("spec", "products"),
    [
        ("random:layer=1,keep=0.25,weigh=nearest", 1),
        ("random:layer=1,keep=0.25,weigh=nearest,merge=mean,strength=0.5", 1),
        ("random:layer=1,keep=0.25,merge=mean", 1),
        ("random:layer=1,keep=0.25,weigh=mixed,place=0.5,merge=mean", 1),
        ("random:layer=1,keep=0.25,weigh=uniform,merge=mean", 2),
        ("random:layer=1,keep=0.25,weigh=cell,merge=mean", 0),
        ("downsample:layer=1,keep=0.25,pool=true,weigh=clusters", 0),
        ("random:layer=1,keep=0.25", 0),
    ],
)
def test_comparing_dropped_with_kept_tokens_is_planned_as_a_trace_counts_it(
    spec: str, products: int
) -> None:
    made, data = model("llava"), batch("llava", Layout(((3, 0, 5),)))
    found = architecture(FAMILIES["llava"](), dtype="float32")
    asked = request(FAMILIES["llava"](), text=8, images=1, new_tokens=1)

    def ran(methods: Any) -> float:
        with foveate.apply(made, *methods) as trace, torch.no_grad():
            made(**data.inputs)
        return cost_of_trace(foveate.cost.flops.shapes(made), trace).score

    methods = parse(spec)
    own = parse(spec.partition(",weigh")[0].partition(",merge")[0])
    planned = cost_of(found, asked, methods).score
    assert planned == ran(methods) - ran(own)
    assert planned == products * 2 * 12 * 4 * found.shapes.layers[1].hidden
    assert cost_of(found, asked, own).score == 0


def test_every_cut_compares_what_it_drops() -> None:
    """Two methods at two layers: 16 to 8 tokens, and what is left to 2."""
    made, data = model("llava"), batch("llava", Layout(((3, 0, 5),)))
    found = architecture(FAMILIES["llava"](), dtype="float32")
    asked = request(FAMILIES["llava"](), text=8, images=1, new_tokens=1, batch=3)
    methods = parse("random:layer=0,keep=0.5,weigh=nearest+random:layer=2,keep=2,merge=mean")
    with foveate.apply(made, *methods) as trace, torch.no_grad():
        made(**data.inputs)
    planned = cost_of(found, asked, methods).score
    assert planned == 3 * cost_of_trace(foveate.cost.flops.shapes(made), trace).score
    assert planned == 3 * 2 * (8 * 8 + 6 * 2) * found.shapes.layers[0].hidden


def test_the_command_counts_comparing(capsys: pytest.CaptureFixture[str]) -> None:
    plain, weighed = "random:layer=2,keep=64", "random:layer=2,keep=64,weigh=nearest,merge=mean"
    found = told(capsys, "llava-1.5-7b", "--method", plain, "--method", weighed)
    assert found[plain]["flops"]["score"] == 0
    assert found[weighed]["flops"]["score"] == 2 * 512 * 64 * 4096
    for row in found.values():
        parts = [value for name, value in row["flops"].items() if name != "total"]
        assert sum(parts) == pytest.approx(row["flops"]["total"])


def test_layers_add_up_and_ratios_fall(capsys: pytest.CaptureFixture[str]) -> None:
    args = [
        "llava-1.5-7b",
        "--batch",
        "3",
        "--method",
        "fastv",
        "--method",
        "random:layer=0,keep=64",
    ]
    found = told(capsys, *args)
    for row in found.values():
        for part in ("prefill", "decode"):
            assert sum(layer[part] for layer in row["layers"]) == pytest.approx(row["flops"][part])
        assert sum(layer["kv_bytes"] for layer in row["layers"]) == pytest.approx(row["kv_bytes"])
    assert found["unpruned"]["ratio"]["flops"] == 1
    assert (
        found["random:layer=0,keep=64"]["ratio"]["prefill"]
        < found["fastv"]["ratio"]["prefill"]
        < 0.6
    )
    assert found["unpruned"]["flops"]["prefill"] == pytest.approx(3 * 8.4e12, rel=0.02)
    assert run(["cost", *args, "--per-layer"]) == 0
    assert "convention" in capsys.readouterr().out


def test_a_configuration_file_will_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FAMILIES["llava"]().save_pretrained(tmp_path)
    whole = told(capsys, str(tmp_path))
    assert told(capsys, str(tmp_path / "config.json")) == whole
    shallow = told(capsys, str(tmp_path), "--layers", "2")
    assert shallow["unpruned"]["flops"]["prefill"] == whole["unpruned"]["flops"]["prefill"] / 2
    assert (
        papers(architecture(config_of(str(tmp_path))), Request(4, 4, 1), [])["fastv"]["ratio"] == 1
    )


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["/nowhere/at/all"], "neither a known shape"),
        (["TEXT-ONLY"], "not a vision-language model's"),
        (["BROKEN"], "no configuration"),
        (["qwen2.5-vl-7b"], "give --image-size"),
        (["qwen2.5-vl-7b", "--image-size", "12"], "width x height"),
        (["llava-1.5-7b", "--method", "vtw:layer=40"], "layers 0 to 31"),
        (["llava-1.5-7b", "--method", "fastvv"], "did you mean"),
        (["llava-1.5-7b", "--output-tokens", "0"], "output-tokens"),
        (["llava-1.5-7b", "--dtype", "int4"], "unknown dtype"),
        (["llava-1.5-7b", "--images", "-1"], "images"),
        ([], "model"),
    ],
)
def test_mistakes_are_one_line(
    args: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LlamaConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    (tmp_path / "broken.json").write_text("{}")
    swap = {"TEXT-ONLY": str(tmp_path), "BROKEN": str(tmp_path / "broken.json")}
    assert run(["cost", *(swap.get(a, a) for a in args)]) == 2
    err = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().err).split())
    assert said.lower() in err.lower() and "Traceback" not in err and "error:" in err


@pytest.fixture
def photo(tmp_path: Path) -> str:
    draw(sample("test", 1)).image.resize((300, 200)).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def test_a_prompt_is_counted_before_the_call(
    photo: str,
    scenes: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    terminal: Callable[[int], None],
) -> None:
    asked = "Describe the image in detail."
    inputs = scenes.inputs([photo, photo], asked)
    with foveate.apply(scenes.model, "divprune:keep=0.25") as trace, torch.no_grad():
        scenes.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *_: pytest.fail("the model was run"))
    found = scenes.length([photo, photo], asked)
    assert found.total == inputs["input_ids"].shape[1] and found.pictures == (196, 196)
    assert (found.words, found.visual) == (6, 392) and found.text == found.total - 392
    args = ["cost", "--image", photo, "--image", photo, "--prompt", asked, "--model", "scenes"]
    args += ["--method", "divprune:keep=0.25", "--output-tokens", "4"]
    assert run([*args, "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["request"]["text"] == found.text and body["request"]["visual"] == 392
    kept = [layer["kept"] for layer in body["methods"]["divprune:keep=0.25"]["layers"]]
    assert kept == [layer[0] for layer in trace.prefill()] == [98] * 8
    monkeypatch.undo()
    row = body["methods"]["unpruned"]["flops"]
    assert row["tower"] == vision_flops(scenes.model, inputs) > 0
    terminal(60)
    assert run(args) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "photo.png (300x200) 196" in said
        and "your text 6" in said
        and f"prompt {found.total}" in said
    )


def test_a_prompt_that_is_too_long_says_what_brings_its_tokens(
    photo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    many = [part for _ in range(11) for part in ("--image", photo)]
    assert run(["cost", "scenes", *many, "--prompt", "what is it ?"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "2,156 of pictures" in said and "4 of your text" in said and "more than the 2,048" in said
    )
    assert said.count(" 196") >= 22  # each picture in the table, and in the warning
    assert run(["generate", *[photo] * 11, "what is it ?", "--max-new-tokens", "1"]) == 0
    assert "2,156 of pictures" in " ".join(capsys.readouterr().err.split())
    assert run(["generate", photo, "what is it ?", "--max-new-tokens", "1"]) == 0
    assert "of pictures" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["cost"], "name one model"),
        (["cost", "scenes", "--model", "scenes"], "name one model"),
        (["cost", "scenes", "--prompt", "what?"], "--prompt is counted with --image"),
        (
            ["cost", "scenes", "--image", "PHOTO", "--images", "2"],
            "--images is a number that --image counts",
        ),
        (["cost", "scenes", "--image", "PHOTO", "--layers", "2"], "--layers"),
        (["cost", "llava-1.5-7b", "--image", "PHOTO"], "a shape without a processor"),
        (["cost", "scenes", "--image", "gone.png"], "there is no image"),
        (["cost", "/nowhere/at/all", "--image", "PHOTO"], "cannot load a model"),
    ],
)
def test_what_cannot_be_counted_is_refused(
    args: list[str], said: str, photo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([arg.replace("PHOTO", photo) for arg in args]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
