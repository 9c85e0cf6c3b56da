"""`foveate bench`: its machinery, never its times."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import foveate
from foveate.cli.app import run
from foveate.cost.architecture import architecture
from foveate.cost.plan import request
from foveate.methods import parse
from foveate.timing import race as bench
from foveate.timing.breakdown import PARTS, parts
from models.kinds import KINDS
from models.tiny import FAMILIES, LAYERS, SIDE


def made(
    kind: str, many: int = 2, images: int = 2
) -> tuple[Any, Any, Any, dict[str, torch.Tensor]]:
    config, size = KINDS[kind][0](), KINDS[kind][2]
    config.image_token_id = 9
    asked = request(config, text=14, images=images, new_tokens=3, batch=many, size=size)
    model = bench.build(config, "cpu")
    return config, model, asked, bench.inputs(config, asked, model, size)


@pytest.mark.parametrize("kind", KINDS)
def test_random_prompts_are_what_the_family_takes(kind: str) -> None:
    config, model, asked, given = made(kind)
    assert given["input_ids"].shape == (2, asked.text + asked.visual)
    assert int((given["input_ids"] == config.image_token_id).sum()) == 2 * asked.visual
    out = model.generate(**given, max_new_tokens=asked.new_tokens, do_sample=False)
    assert out.shape == (2, asked.text + asked.visual + 3)


def test_every_contestant_runs_once_in_each_turn_and_none_is_always_first() -> None:
    order: list[str] = []
    names = ["a", "b", "c"]
    found = bench.in_turn({n: lambda n=n: order.append(n) or len(order) for n in names}, 3)  # type: ignore[misc]
    turns = [order[i : i + 3] for i in range(0, 12, 3)]
    assert (
        all(sorted(turn) == names for turn in turns) and len({turn[0] for turn in turns[:3]}) == 3
    )
    assert all(len(runs) == 3 for runs in found.values())
    assert bench.faster([2.0, 3.0, 8.0], [1.0, 1.0, 1.0]) == 3.0


def test_a_race_gives_caps_from_what_was_really_kept() -> None:
    config, model, asked, given = made("llava")
    contestants = {"vtw:layer=2": parse("vtw:layer=2"), "dense": parse("fastv:layer=1,keep=1.0")}
    found = bench.race(model, architecture(config, "float32"), asked, given, contestants, 1)
    assert list(found) == ["plain", "plain again", "keep-all", *contestants]
    assert (
        found["plain"].ratio == {"first": 1.0, "further": 1.0, "total": 1.0}
        and not found["plain"].cap
    )
    assert (
        found["keep-all"].cap == found["dense"].cap == {"first": 1.0, "further": 1.0, "total": 1.0}
    )
    assert found["vtw:layer=2"].kept == found["vtw:layer=2"].last == [32.0, 32.0, 0.0, 0.0]
    assert found["vtw:layer=2"].cap["first"] > 1.1 and found["vtw:layer=2"].cap["further"] > 1


def test_a_ratio_above_its_cap_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    config, model, asked, given = made("llava", 1, 1)
    monkeypatch.setattr(bench, "SLACK", 0.0)
    found = bench.race(
        model,
        architecture(config, "float32"),
        asked,
        given,
        {"vtw:layer=2": parse("vtw:layer=2")},
        1,
    )
    assert (
        found["vtw:layer=2"].exceeded == ["first", "further", "total"]
        and found["plain"].exceeded == []
    )


def test_parts_are_told_apart_and_the_model_is_left_as_it_was() -> None:
    _, model, asked, given = made("llava")
    plain = model.generate(**given, max_new_tokens=3, do_sample=False)
    with foveate.apply(model, *parse("fastv:layer=2,keep=0.5")):
        pruned = model.generate(**given, max_new_tokens=3, do_sample=False)
    hooks = _hooks(model)  # transformers has put its own on
    found = parts(model, given, parse("fastv:layer=2,keep=0.5"), asked.new_tokens)
    assert set(found) == set(PARTS) and all(
        found[p] > 0 for p in ("vision", "prefill", "decode", "score", "schedule")
    )
    assert found["score"] < found["prefill"] and 0 < found["control"] < found["decode"]
    assert found["control"] < found["drop"] + found["score"] + found["schedule"], (
        "the prefill's is not in it"
    )
    assert parts(model, given, [], asked.new_tokens)["score"] == 0
    assert torch.equal(model.generate(**given, max_new_tokens=3, do_sample=False), plain)
    with foveate.apply(model, *parse("fastv:layer=2,keep=0.5")):
        assert torch.equal(model.generate(**given, max_new_tokens=3, do_sample=False), pruned)
    assert _hooks(model) == hooks


def _hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shape")
    FAMILIES["llava"]().save_pretrained(folder)
    return str(folder)


def test_json_comes_when_it_is_wanted_and_runs_are_compared(
    shape: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "one.json"
    args = [
        "bench",
        "--shape",
        shape,
        "--prompt-tokens",
        "8",
        "--output-tokens",
        "3",
        "--repeats",
        "1",
    ]
    args += ["--batch", "2", "--method", "random:layer=0,keep=0.25"]
    assert run([*args, "--save", str(saved)]) == 0
    said = capsys.readouterr()
    assert "{" not in said.out and "times faster than plain" in said.out
    assert f"wrote {saved}" in said.err
    body = json.loads(saved.read_text())
    assert run([*args, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(body)
    assert (
        body["request"]["visual"] == SIDE
        and body["layers"] == LAYERS
        and body["dtype"] == "float32"
    )
    assert body["found"]["random:layer=0,keep=0.25"]["kept"] == [4.0] * LAYERS
    assert set(body["parts"]) == {"keep-all", "random:layer=0,keep=0.25"}
    assert run([*args, "--compare", str(saved)]) == 0
    assert "beside the earlier run" in capsys.readouterr().out
    assert run([*args, "--compare", str(saved), "--batch", "1"]) == 2
    assert "compare like with like" in " ".join(capsys.readouterr().err.split())
    single = [*args, "--output-tokens", "1", "--save", str(tmp_path / "single.json")]
    assert run([*single, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["found"]["plain"]["further"] is None
    assert "NaN" not in (tmp_path / "single.json").read_text()
    assert run([*single, "--compare", str(tmp_path / "single.json")]) == 0
    assert "nan" not in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused_before_it_is_timed(
    shape: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old.json"
    old.write_text(json.dumps({"found": {}, "shape": "another"}))
    monkeypatch.setattr(bench, "race", lambda *_: pytest.fail("it was timed all the same"))
    assert run(["bench", "--shape", shape, "--compare", str(old)]) == 2
    assert "compare like with like" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--shape", "/nowhere/at/all"], "neither a known shape"),
        (["--method", "fastvv"], "did you mean 'fastv'"),
        (["--device", "cuda:99"], "cuda"),
        (["--images", "0"], "leaves nothing to drop"),
        (["--shape", "tiny-20m", "--layers", "2", "--method", "vtw:layer=5"], "layers 0 to 1"),
        (["--shape", "tiny-20m", "--attention", "flash_attention_2"], "cannot be used here"),
        (["--dtype", "float8"], "unknown dtype"),
        (["--layers", "0"], "layers"),
        (["--save", "/nowhere/x.json"], "no folder"),
        (["--compare", "/nowhere/x.json"], "cannot read"),
        (["--compare", __file__], "cannot read"),
        (["--shape", "qwen2.5-vl-7b"], "give --image-size"),
    ],
)
def test_mistakes_are_one_line(
    args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", *args]) == 2
    err = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().err).split())
    assert said.lower() in err.lower() and "Traceback" not in err and "error:" in err
