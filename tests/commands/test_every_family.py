"""Every command on every family, from a folder with model and processor, as users run it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import foveate
from foveate.cli.app import run
from foveate.methods import score_of
from foveate.models.load import load
from foveate.models.processors import missing_packages
from foveate.tune.examples import file_examples
from foveate.tune.search.runner import Runner
from foveate.tune.setting import portfolio
from foveate.tune.train.dyrate.rollout import batch_of, unpruned_logits
from models.processors import PROCESSORS
from models.saved import save
from oracles.cached import decoded
from oracles.crossing import CLOSE

METHOD = "fastv:layer=1,keep=0.5"
WEIGHED = "divprune:keep=0.5,weigh=nearest,merge=mean"
PROMPT = "what is this ?"
COMMANDS: dict[str, list[str]] = {  # MODEL, IMAGE, OTHER, DATA, ROWS, ASKED and OUT stand for paths
    "generate": ["generate", "IMAGE", PROMPT, "--model", "MODEL", "--method", METHOD, "--compare",
                 "--max-new-tokens", "2", "--repeats", "1", "--json"],
    "generate weighed": ["generate", "IMAGE", PROMPT, "--model", "MODEL", "--method", WEIGHED,
                         "--max-new-tokens", "2"],
    "eval": ["eval", "--model", "MODEL", "--data", "DATA", "--method", METHOD, "--batch", "2", "--json"],
    "doctor": ["doctor", "MODEL", "--json"],
    "inspect attention": ["inspect", "attention", "IMAGE", "--prompt", PROMPT, "--model", "MODEL",
                          "--max-new-tokens", "2", "--json"],
    "plot mask": ["plot", "mask", "IMAGE", "--prompt", PROMPT, "--model", "MODEL", "--method", METHOD,
                  "--max-new-tokens", "2", "--out", "OUT/mask.png"],
    "explore": ["explore", "IMAGE", "OTHER", PROMPT, "--model", "MODEL", "--method", METHOD, "--max-new-tokens", "2",
                "--out", "OUT/page.html", "--json"],
    "cost counted": ["cost", "--image", "IMAGE", "--image", "IMAGE", "--prompt", PROMPT, "--model", "MODEL",
                     "--method", METHOD, "--json"],
    "cost": ["cost", "MODEL", "--method", METHOD, "--image-size", "40x24", "--json"],
    "search": ["search", "MODEL", "--data", "ROWS", "--out", "OUT/found.json", "--algorithm", "random", "--budget",
               "0.6", "--trials", "2", "--start-layer", "1", "--batch", "2", "--json"],
    "tune": ["tune", "MODEL", "--data", "ASKED", "--loss", "20%", "--loss-of", "words", "--guard", "--out",
             "OUT/tuned.json", "--json"],
    "train dyrate": ["train", "dyrate", "--model", "MODEL", "--data", "ROWS", "--out", "OUT/predictor", "--steps", "1",
                     "--batch", "2", "--layer", "1", "--budget", "0.9", "--held-out", "1", "--masks"],
}  # fmt: skip
REFUSALS = {  # what the engine does not do yet, in the words that a user reads
    "plot mask": "tokens form no grid over the image",
    "cost counted": r"its cost is not known",
    "cost": r"makes of a picture, and at what cost, is not known|its cost is not known",
}
SLICE = (
    "qwen2_5_vl",
    "internvl",
    "llava",
    "smolvlm",
    "gemma3",
)  # in the default run; the others are slow


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folders of the families, two pictures, samples to judge and rows to learn from."""
    home = tmp_path_factory.mktemp("commands")
    rng = np.random.default_rng(0)
    for name, (width, height) in {"a.png": (40, 24), "b.png": (20, 44)}.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(home / name)
    asked = [
        ("a.png", PROMPT),
        ("b.png", "what is that ?"),
        ("a.png", "is this that ?"),
        ("b.png", PROMPT),
    ]
    samples = [
        {
            "image": image,
            "prompt": text,
            "reference": "this",
            "metric": "exact",
            "max_new_tokens": 2,
        }
        for image, text in asked[:3]
    ]
    rows = [{"image": image, "prompt": text, "response": "this is that"} for image, text in asked]
    unanswered = [
        {"image": image, "prompt": text, "group": str(number), "max_new_tokens": 3}
        for number, (image, text) in enumerate([*asked, *asked, *asked])
    ]
    bodies = {"data.jsonl": samples, "rows.jsonl": rows, "asked.jsonl": unanswered}
    for name, body in bodies.items():
        (home / name).write_text("".join(json.dumps(row) + "\n" for row in body))
    return home


def ran(
    command: str, name: str, files: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    save(name, files / name)
    swap = {
        "MODEL": files / name,
        "IMAGE": files / "a.png",
        "OTHER": files / "b.png",
        "DATA": files / "data.jsonl",
        "ROWS": files / "rows.jsonl",
        "ASKED": files / "asked.jsonl",
    }
    args = [str(swap.get(part, part)).replace("OUT", str(out)) for part in COMMANDS[command]]
    capsys.readouterr()
    code = run(args)
    said = capsys.readouterr()
    return code, said.out, " ".join(re.sub(r"\x1b\[[0-9;]*m", "", said.err).split())


def crossed() -> list[Any]:
    """Every command on every family; outside the slice they are slow."""
    return [
        pytest.param(command, name, marks=[] if name in SLICE else [pytest.mark.slow])
        for name in PROCESSORS
        for command in COMMANDS
    ]


@pytest.mark.parametrize(("command", "name"), crossed())
def test_it_works_or_says_why_not(
    command: str,
    name: str,
    files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if command == "tune":  # every line of the portfolio, at one cost
        monkeypatch.setattr(portfolio, "LEVELS", (0.9,))
    code, out, said = ran(command, name, files, tmp_path, capsys)
    assert "Traceback" not in said
    if code == 2:
        assert re.search(REFUSALS.get(command, "never refused"), said), said
        return
    assert code == 0, said
    if command == "generate":
        plain, fewer = json.loads(out)["rows"]
        assert plain["kept"] == 1 and 0.6 < fewer["kept"] < 0.7  # half from layer 1 of 4 on
        assert 0 < fewer["flops"]["ratio"]["flops"] < 1
        assert set(fewer["cap"]) == {"first", "further"} and fewer["cap"]["first"][0] > 1
    if command == "generate weighed":  # one method, streamed
        kept = re.search(r"kept (\d+)% of \d+ visual tokens", said)
        assert kept and 40 < int(kept[1]) < 60  # half of each image
        assert out.endswith("\n") and "x faster" not in said
    if command == "cost counted":
        body = json.loads(out)
        loaded = load(str(files / name))
        ids = loaded.inputs([files / "a.png"] * 2, PROMPT)["input_ids"]
        seen = torch.isin(
            ids, torch.tensor(loaded.adapter.visual_tokens(loaded.model.config))
        ).sum()
        assert (
            body["prompt"]["total"]
            == ids.numel()
            == sum(body["request"][k] for k in ("text", "visual"))
        )
        assert body["prompt"]["visual"] == body["request"]["visual"] == int(seen) > 0
        each = [one["tokens"] for one in body["prompt"]["pictures"]]
        assert len(each) == 2 and (None in each or sum(each) == int(seen))
        fewer = body["methods"][METHOD]["layers"]
        assert fewer[0]["kept"] == int(seen) and abs(fewer[-1]["kept"] - int(seen) / 2) <= 1
    if command == "eval":
        assert (
            json.loads(out)["samples"] == 3
            and 0.6 < json.loads(out)["methods"][METHOD]["work"]["tokens"] < 0.7
        )
    if command == "tune":
        body = json.loads(out)
        assert len(body["tried"]) > 4 and body["certificate"]["sentence"]
        assert (tmp_path / "tuned.html").read_text().count("<circle") > 4
        loaded = load(str(files / name))
        with foveate.apply(loaded.model, f"tuned:{tmp_path / 'tuned.json'}") as trace:
            loaded.model(**loaded.inputs([files / "a.png"], PROMPT), use_cache=True)
        assert (trace.mean_kept() < 1) == (body["method"] != "none")
    if command == "explore":
        plain, fewer = json.loads(out)["rows"]
        assert plain["kept"] == 1 and 0.6 < fewer["kept"] < 0.7
        assert 0 < fewer["flops"] < plain["flops"]
        page = (tmp_path / "page.html").read_text()
        panels = json.loads(page.split('id="data">')[1].split("</script>")[0])["samples"][0][
            "panels"
        ]
        found = sorted(token for panel in panels for token in panel["tokens"])
        assert found == list(range(len(found))) and len(found) >= 6
        assert {panel["title"][:9] for panel in panels} == {"Picture 1", "Picture 2"}
        assert all(panel["grid"] or panel["note"] for panel in panels)
        assert not any("is not known" in panel["note"] for panel in panels)
    if command == "doctor":
        found = json.loads(out)
        wanted = PROCESSORS[name]()
        whole = wanted.video is None or not missing_packages()
        assert found["healthy"] and found["note"] == "on a picture of noise"
        assert found["facts"]["processor"].startswith(
            f"{wanted.kind}: {'whole' if whole else 'its processor takes'}"
        )


@pytest.mark.parametrize(
    "name", [p if p in SLICE else pytest.param(p, marks=pytest.mark.slow) for p in PROCESSORS]
)
def test_what_is_taught_is_what_generate_is_given(name: str, files: Path) -> None:
    """Prompts as the family's processor makes them, with answers behind: positions, types, masks."""
    save(name, files / name)
    loaded = load(str(files / name))
    given, _, _ = batch_of(loaded, file_examples(files / "rows.jsonl").rows)
    keep = (1.0, *[0.5] * (loaded.anatomy.depth - 1))
    runner = Runner(loaded.model, score_of("received"))
    there = given.answered
    found = loaded.anatomy.logits(runner.to_end(runner.start(given), keep))[there]
    wanted = decoded(loaded.model, given, runner.method(runner.score, keep))[there]
    plain = decoded(loaded.model, given)[there]
    torch.testing.assert_close(found, wanted, **CLOSE)
    torch.testing.assert_close(unpruned_logits(loaded.model, given)[there], plain, **CLOSE)
    far = (plain - wanted).abs().max()  # small weights: dropping changes little, but far more
    assert far > 1e-5 and (found - wanted).abs().max() < 0.02 * far
