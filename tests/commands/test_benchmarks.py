"""The drivers in benchmarks/: their logic and their pages, never their times."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

import foveate
from models.tiny import LAYERS, SIDE, llava

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
DEPTH, TEXT, VISUAL = 4, 12, 16
TINY = {
    "model_type": "llava", "image_token_index": 9, "vision_feature_layer": -1,
    "text_config": {
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": DEPTH,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 512,
        "initializer_range": 0.5,
    },
    "vision_config": {
        "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 16, "patch_size": 4, "projection_dim": 16,
    },
}  # fmt: skip


def load(path: Path) -> ModuleType:
    """A script as a module, with its own folder to import from."""
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module.__name__] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(path.parent))


peers, gpu, check, serving, pages = (
    load(BENCHMARKS / "peers" / "run.py"),
    load(BENCHMARKS / "gpu.py"),
    load(BENCHMARKS / "gpu_check.py"),
    load(BENCHMARKS / "serving.py"),
    load(BENCHMARKS / "pages.py"),
)


def asked(**changed: Any) -> Any:
    settled = {
        "config": TINY, "text": TEXT, "visual": VISUAL, "keep": 0.5, "layer": 2, "new_tokens": 12, "batch": 2,
        "repeats": 1, "threads": 1, "device": "cpu", "dtype": "float32",
    }  # fmt: skip
    return peers.Asked(**{**settled, **changed})


@torch.inference_mode()
def answers(script: str, request: Any) -> dict[str, Any]:
    """Every contestant of a script, once: new tokens and entries left."""
    runs = load(BENCHMARKS / "peers" / script).contestants(request)
    return {name: run()[1:] for name, run in runs.items()}


def test_fastv_as_users_write_it_is_fastv() -> None:
    """Eager attention and slices by hand give what the engine gives, and not what the plain model gives."""
    ours, theirs = answers("with_foveate.py", asked()), answers("eager_fastv.py", asked())
    plain, left = ours["plain"][0], [TEXT + VISUAL] * 2 + [TEXT + VISUAL // 2] * 2
    assert theirs["plain"][0] == theirs["plain, eager"][0] == plain
    assert (
        ours["foveate, FastV"]
        == theirs["eager FastV, a hook"]
        == theirs["eager FastV, output_attentions"]
    )
    assert ours["foveate, FastV"][0] != plain and ours["foveate, FastV"][1] == left


def test_a_contestant_that_fails_says_why_and_the_others_go_on() -> None:
    common = sys.modules["common"]

    def fine() -> Any:
        watch = common.Watch(torch.device("cpu"))
        for _ in range(4):  # the prompt and three tokens
            watch.put(torch.zeros(1))
        return watch, [1, 2, 3], [5, 5]

    def broken() -> Any:
        raise KeyError("no such thing")

    found = common.race({"plain": fine, "broken": broken, "other": fine}, 3, torch.device("cpu"))
    assert found["broken"] == {"failed": "KeyError: 'no such thing'"}
    assert len(found["plain"]["first"]) == len(found["other"]["further"]) == 3
    told = peers.summary(found, asked(new_tokens=3))
    assert (
        told["plain"]["ratio"] == {"first": 1.0, "further": 1.0, "total": 1.0}
        and "failed" in told["broken"]
    )


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import sys; sys.exit('no module named peer')", "no module named peer"),
        ("print('hello')", "answered no result"),
        ("print('[]')", "answered no result"),
        ("import time; time.sleep(60)", "took longer than 1 s"),
    ],
)
def test_a_peer_that_cannot_run_is_told_with_the_reason(
    script: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "peer.py"
    path.write_text(script)
    with pytest.raises(peers.NotRunError, match=said):
        peers.drive(sys.executable, path, asked(), 1 if "sleep" in script else 60)
    with pytest.raises(peers.NotRunError, match="not started"):
        peers.drive(str(tmp_path / "nowhere"), path, asked(), 60)


def test_an_environment_that_cannot_be_made_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(command: list[str], **_: Any) -> Any:
        class Done:
            returncode = 1
            stderr = "Looking\nERROR: No matching distribution found for peer\n[notice] A new release of pip\n"

        return Done()

    monkeypatch.setattr(peers.subprocess, "run", failing)
    with pytest.raises(peers.NotRunError, match="not installed: ERROR: No matching distribution"):
        peers.interpreter("peer", peers.Peer("peer.py", ("peer==1",)), tmp_path)
    assert peers.interpreter("ours", peers.Peer("ours.py"), tmp_path) == sys.executable


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shape")
    llava().save_pretrained(folder)
    return str(folder)


SMALL = gpu.Setting(text=8, new_tokens=3, repeats=1, device="cpu", dtype="float32")


def test_rows_are_measured_once_and_the_rest_on_the_next_run(shape: str, tmp_path: Path) -> None:
    save, said = tmp_path / "gpu.json", []
    first = gpu.run([shape], [1], SMALL, save, said.append)
    row = first["rows"][0]
    assert row["batch"] == 1 and row["visual"] == SIDE and first["device"] == "CPU"
    assert len(row["found"]) == 3 + 5 and row["found"]["plain"]["ratio"]["first"] == 1.0
    assert (
        row["found"]["schedule, example"]["kept"][-1]
        < row["found"]["schedule, example"]["kept"][0]
        == SIDE
    )
    assert 0 < row["found"]["dyrate, random predictor"]["kept"][-1] < SIDE
    second = gpu.run([shape], [2, 1], SMALL, save, said.append)
    assert [r["batch"] for r in second["rows"]] == [1, 2] and second["rows"][0] == json.loads(
        json.dumps(row)
    )
    assert len(said) == 2 and "batch 2" in said[1]
    with pytest.raises(ValueError, match="another setting"):
        gpu.run([shape], [1], gpu.Setting(text=9, device="cpu"), save)
    assert "| 2 | `divprune:keep=0.125` |" in pages.gpu(second)


def test_batches_that_do_not_fit_are_skipped_with_a_line(
    shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu, "race", full)
    told = gpu.identity(SMALL)
    monkeypatch.setattr(gpu, "identity", lambda _: {**told, "memory": 1e6})
    body = gpu.run([shape], [1, 10_000], SMALL, tmp_path / "gpu.json", said.append)
    assert [row.get("skipped", "")[:22] for row in body["rows"]] == [
        "the device's memory ra",
        "weights and KV cache n",
    ]
    assert sum("skipped" in line for line in said) == 2
    assert pages.gpu(body).count("| skipped: ") == 2


def test_it_ends_when_the_time_is_up(shape: str, tmp_path: Path) -> None:
    said: list[str] = []
    body = gpu.run([shape], [1], SMALL, tmp_path / "gpu.json", said.append, minutes=-1.0)
    assert body["rows"] == [] and "minutes are over" in said[-1]


def test_checks_of_a_device_are_rehearsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "kinds", lambda _: [("float32", "sdpa", None)])
    assert check.run("cpu", tmp_path / "check.json", 5.0, lambda _: None) == 0
    found = json.loads((tmp_path / "check.json").read_text())["lines"]
    assert len(found) == 1 + 3 + 3 * 5 and all(line["right"] for line in found)


def test_every_shape_has_its_contestants() -> None:
    for name in gpu.SHAPES:
        config = gpu.config_of(name)
        found = gpu.contestants(config)
        for method in (m for methods in found.values() for m in methods):
            method.check(config.get_text_config().num_hidden_layers)
        assert len(found) == (5 if config.model_type == "llava" else 4)


def test_without_a_gpu_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(gpu.typer.Exit) as stopped:
        gpu.main(shape=None, batch=None, rehearse=False)
    assert stopped.value.exit_code == 1 and "there is no CUDA device" in capsys.readouterr().err


def test_pages_say_what_was_measured() -> None:
    """Pages are what benchmarks/pages.py renders of docs/results/*.json."""
    served = [pages.read(name) for name in pages.SERVED]
    assert pages.serving(served) == pages.SERVING.read_text()
    assert pages.peers(pages.read("peers")) == pages.PEERS.read_text()
    assert pages.gpu(pages.read("gpu")) == pages.GPU.read_text()


def test_the_page_of_peers_tells_what_failed_and_what_dropped_nothing() -> None:
    one = {
        "first": 0.1,
        "further": 0.01,
        "ratio": {"first": 1.0, "further": 1.0, "total": 1.0},
        "peak": None,
    }
    whole = TEXT + VISUAL
    found = {"plain": {**one, "held": [whole] * LAYERS}, "idle": {**one, "held": [whole] * LAYERS}}
    body = {
        "shape": "tiny", "layers": LAYERS, "device": "a CPU", "capability": "",
        "request": {**vars(asked()), "kept": 8},
        "peers": {
            "a": {"versions": {"torch": "2"}, "found": {**found, "bad": {"failed": "KeyError: 1"}}},
            "b": {"failed": "not installed: nowhere"},
        },
    }  # fmt: skip
    page = pages.peers(body)
    assert (
        "**b could not be run**: not installed: nowhere" in page
        and "**bad could not be run**: KeyError: 1" in page
    )
    assert "**idle dropped nothing**" in page and "plain dropped nothing" not in page
    assert "| idle | 100.0 ms | 1.00 | 10.0 ms | 1.00 | 1.00 |  | 28 |" in page


def test_a_model_for_serving_takes_the_prompts_of_the_benchmark(tmp_path: Path) -> None:
    config = serving.config_of("tiny-20m", 1)
    serving.write_model(config, tmp_path)
    loaded = foveate.load(str(tmp_path))
    side = serving.config_side(tmp_path)
    picture = Image.new("RGB", (side, side))
    given = loaded.processor(text="w1 <image> w16 w17", images=[picture], return_tensors="pt")
    ids = given["input_ids"][0]
    assert int((ids == config.image_token_id).sum()) == 576 and len(ids) == 576 + 3
    assert ids[-2:].tolist() == [16, 17]
    loaded.model(**given)


def test_caps_of_serving() -> None:
    config = serving.config_of("smol-135m")
    sizes = serving.architecture(config, "float32")
    short, long = (
        serving.caps_of(config, sizes, serving.Load.of(text), 64) for text in ("4x1", "4x16")
    )
    for method in serving.SPECS:
        assert "further" not in short[method]
        # Of one token, everything is the prefill; the more tokens, the less a prefill is of all.
        assert short[method]["first"] == pytest.approx(short[method]["total"], rel=1e-3)
        assert 1 < long[method]["total"] < short[method]["total"]
        assert long[method]["first"] == pytest.approx(short[method]["first"])
    for text in ("4", "x4", "0x1", "4x0", "4x1x1"):
        with pytest.raises(ValueError, match="expected REQUESTSxTOKENS"):
            serving.Load.of(text)


def test_the_page_of_serving() -> None:
    def turn(pruned: float) -> dict[str, Any]:
        runs = {
            name: {"first": 1 / speed, "further": None, "total": 1 / speed, "processor": 1 / speed}
            for name, speed in {"plain": 1.0, "none": 1.1, "fastv": pruned}.items()
        }
        return {"machine": 1.5, "runs": runs}

    caps = {"fastv": {"first": 2.0, "total": 2.0}}
    body = {
        "setting": {"shape": "tiny", "text": 64, "threads": 1}, "visual": 576, "processors": 2, "versions": {},
        "rows": [
            {"load": "4x1", "against": {}, "caps": caps, "turns": [turn(1.5), turn(1.7), turn(1.9)]},
            {"load": "1x1", "against": {"fastv": "none"}, "caps": caps, "turns": [turn(2.42)]},
        ],
    }  # fmt: skip
    page = pages.serving([None, body])
    assert "| 4x1 | 3 | `plain` | 1000 ms |  | 1000 ms | 1000 ms |  |" in page
    cell = "1.68 of 2.00 (1.50 to 1.90)"  # three turns: 3 s of plain's over 1.78 s
    assert f"| `fastv` | {cell} |  | {cell} | 1.68 (1.50 to 1.90) | 84% |" in page
    assert "| `fastv` | 2.20 of 2.00 |" in page and "1 CPU thread;" in page
    assert page.count("**above its cap**") == 1
    assert "**Not yet measured.**" in pages.serving([None, None])
