"""The command line in terminals of several widths, and in a shell that completes words."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from foveate.artefacts.predictors import from_pretrained, save_pretrained
from foveate.cli.app import PANELS, app, run
from foveate.files import writing
from foveate.world.draw import draw
from foveate.world.scenes import sample

LONG = "divprune:keep=0.125,weigh=nearest,merge=mean"


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_commands_are_grouped_and_every_one_has_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    for asked in ("--help", "-h"):
        assert run([asked]) == 0
        said = plain(capsys.readouterr().out)
        found = [said.index(f"─ {panel} ") for panel in PANELS]
        assert found == sorted(found)
        for command in (*app.registered_commands, *app.registered_groups):
            assert re.search(rf"│ {command.name} ", said)
    for args in (["generate", "-h"], ["inspect", "attention", "-h"]):
        assert run(args) == 0
        assert "Usage: foveate" in plain(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("args", "meant"),
    [
        (["bnch"], "'bench'"),
        (["train", "dirate"], "'dyrate'"),
        (["generate", "a.png", "what?", "--mehtod", "fastv"], "--method"),
        (["methods", "divprun"], "'divprune'"),
    ],
)
def test_what_was_mistyped_is_told_with_what_was_meant(
    args: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(args) == 2
    said = " ".join(plain(capsys.readouterr().err).split())
    assert meant in said and re.search("did you mean|possible options", said, re.I)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("foveate gen", ["generate"]),
        ("foveate generate --method divpr", ["divprune"]),
        ("foveate generate --model s", ["scenes", "smol"]),
        ("foveate generate --prompt-f", ["--prompt-file"]),
    ],
)
def test_a_shell_completes_commands_options_methods_and_models(
    typed: str,
    offered: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("_FOVEATE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    with pytest.raises(SystemExit):
        run([])
    assert capsys.readouterr().out.split() == offered


@pytest.mark.parametrize("columns", [30, 40, 60, 80, 140])
@pytest.mark.parametrize(
    ("args", "figures"),
    [
        (["cost", "scenes", "--method", LONG], 9),
        (["advise", "llava-1.5-7b", "--method", LONG], 3),
    ],
)
def test_no_figure_is_lost_in_a_narrow_terminal(
    args: list[str],
    figures: int,
    columns: int,
    capsys: pytest.CaptureFixture[str],
    terminal: Callable[[int], None],
) -> None:
    terminal(1000)
    assert run(args) == 0
    wide = capsys.readouterr().out
    row = next(line for line in wide.splitlines() if line.startswith(LONG))
    terminal(columns)
    assert run(args) == 0
    said = capsys.readouterr().out
    assert max(len(line.rstrip()) for line in said.splitlines()) <= columns and "…" not in said
    wanted = row.split()[1:]
    assert len(wanted) >= figures - 1
    for figure in wanted:
        assert said.count(figure) >= wanted.count(figure)
    for knob in ("keep=0.125", "weigh=nearest", "merge=mean"):
        assert knob in said  # whole
    grid = any("────" in line for line in said.splitlines())
    assert grid == (columns >= (40 if args[0] == "advise" else 80))


def test_every_file_that_is_written_is_named_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for args in (
        ["inspect", "attention", "--pictures", "1", "--max-new-tokens", "2", "--plot", "a.png"],
        ["plot", "mask", "scene:0", "--method", "fastv", "--max-new-tokens", "2", "--out", "m.png"],
        [
            "eval",
            "--tasks",
            "questions",
            "--limit",
            "1",
            "--tokenizer",
            "words",
            "--save",
            "answers",
        ],
    ):
        path = tmp_path / args[-1]
        assert run([*args[:-1], str(path)]) == 0
        last = plain(capsys.readouterr().err).splitlines()[-1]
        assert last.startswith(f"wrote {path} (") and path.exists()


FULL = Path("/dev/full")  # a file on a disk that is full


@pytest.mark.skipif(not FULL.exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize(
    ("args", "files"),
    [
        (["generate", "PICTURE", "what?", "--max-new-tokens", "1", "--trace", "OUT/t.json"], ["t.json"]),
        (["bench", "--shape", "tiny-20m", "--layers", "1", "--repeats", "1", "--output-tokens", "1",
          "--method", "vtw:layer=0", "--save", "OUT/b.json"], ["b.json"]),
        (["eval", "--tasks", "questions", "--limit", "1", "--save", "OUT"], ["report.json"]),
        (["search", "--out", "OUT/s.json", "--algorithm", "random", "--trials", "1", "--calibration", "2",
          "--held-out", "1", "--batch", "2", "--budget", "0.6"], ["s.json"]),
        (["plot", "mask", "scene:0", "--method", "fastv", "--max-new-tokens", "1", "--out", "OUT/m.png"], ["m.png"]),
    ],
)  # fmt: skip
def test_a_full_disk_is_told_with_the_file(
    args: list[str], files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "a.png"
    draw(sample("test", 0)).image.save(picture)
    for name in files:
        (tmp_path / name).symlink_to(FULL)
    swapped = [arg.replace("PICTURE", str(picture)).replace("OUT", str(tmp_path)) for arg in args]
    assert run(swapped) == 2
    said = " ".join(plain(capsys.readouterr().err).split())
    assert f"cannot write {tmp_path / files[0]}: No space left on device" in said


def test_weights_on_a_full_disk_are_told_with_the_file(tmp_path: Path) -> None:
    predictor, card = from_pretrained("scenes-0.5")
    (tmp_path / "full").mkdir()
    save_pretrained(predictor, card, tmp_path / "full")
    for name in ("predictor.json", "predictor.safetensors"):
        (tmp_path / name).unlink(missing_ok=True)
    if FULL.exists():
        (tmp_path / "predictor.json").symlink_to(FULL)
        with pytest.raises(OSError, match=r"cannot write .*predictor\.json: No space"):
            save_pretrained(predictor, card, tmp_path)
    with (
        pytest.raises(OSError, match=r"cannot write .*w\.safetensors: .*No space"),
        writing(tmp_path / "w.safetensors"),
    ):
        raise SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    "args",
    [
        ["eval", "--data", "FILE"],
        ["search", "--data", "FILE", "--out", "OUT/s.json"],
        ["train", "dyrate", "--data", "FILE", "--out", "OUT/p"],
        ["generate", "FILE", "what?", "--method", "schedule:FILE"],
        ["bench", "--compare", "FILE"],
        ["plot", "pareto", "FILE", "--out", "OUT/p.png"],
        ["plot", "schedule", "FILE", "--out", "OUT/p.png"],
        ["cost", "FILE"],
        ["generate", "FILE", "@FILE"],
    ],
)
def test_a_file_that_is_not_utf8_is_named(
    args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "latin1.jsonl"
    file.write_bytes('{"prompt": "caf\xe9"}\n'.encode("latin-1"))
    swapped = [arg.replace("FILE", str(file)).replace("OUT", str(tmp_path)) for arg in args]
    assert run(swapped) == 2
    said = " ".join(plain(capsys.readouterr().err).split())
    assert f"cannot read {file}: byte 15 is not UTF-8; save it as UTF-8 text" in said
