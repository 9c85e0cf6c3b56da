"""Data files as people have them: for evaluation, and to learn from."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from foveate.cli.app import run
from foveate.cost.flops import shapes
from foveate.eval.answers import answer
from foveate.eval.tasks import from_file, identity
from foveate.models.loaded import Loaded
from foveate.models.prompts import prompt
from foveate.tune.examples import file_examples
from foveate.world.draw import draw
from foveate.world.scenes import sample


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw(sample("test", 1)).image.save(tmp_path / "a.png")
    return tmp_path


def chat(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    """A row as LLaVA's data have it."""
    said = [
        {"from": who, "value": text}
        for pair in turns
        for who, text in zip(("human", "gpt"), pair, strict=True)
    ]
    return {"id": "000000033471", "image": "a.png", "conversations": said, **more}


CHAT = chat(("<image>\nhow many shapes are there?", "two"), ("what color is it?", "red"), model="x")
ROW = {"image": "a.png", "prompt": "how many shapes are there?", "reference": 3, "metric": "exact"}


def test_llavas_json_is_read_for_evaluation(folder: Path) -> None:
    path = folder / "llava.json"
    path.write_text(json.dumps([CHAT, chat(("<image> what shape is it?", "ring"))]))
    first, second, third = from_file(path, metric="exact, rouge-l")
    assert (first.prompt, first.references, first.earlier) == (
        "how many shapes are there?",
        ("two",),
        (),
    )
    assert second.prompt == "what color is it?" and second.references == ("red",)
    assert second.earlier == (("how many shapes are there?", "two"),)
    assert [s.key for s in (first, second, third)] == ["llava/1", "llava/1-2", "llava/2"]
    assert first.metrics == ("exact", "rouge-l") and first.group == third.group == "a.png"
    assert [len(from_file(path, limit, "exact")) for limit in (1, 2, 3)] == [1, 2, 3]
    assert identity([second]) != identity([second.__class__(**{**vars(second), "earlier": ()})])
    with pytest.raises(ValueError, match=r"llava\.json:1: the row names no metric.*--metric"):
        from_file(path)


def test_earlier_turns_are_in_the_prompt(folder: Path, scenes: Any) -> None:
    (folder / "llava.json").write_text(json.dumps(CHAT))  # one object
    samples = from_file(folder / "llava.json", metric="exact")
    asked: list[Any] = []

    class Watched(Loaded):
        def encode(self, *args: Any, **kwargs: Any) -> Any:
            asked.append(super().encode(*args, **kwargs)["input_ids"])
            raise StopIteration

    watched = Watched(scenes.model, scenes.processor)
    with pytest.raises(StopIteration):
        answer(watched, samples[1:], [], shapes(scenes.model))
    before = (("how many shapes are there?", "two"),)
    wanted = prompt(scenes.processor, 1, "what color is it?", earlier=before)
    text = scenes.tokenizer.decode(asked[0][0], skip_special_tokens=True)
    words = scenes.tokenizer.decode(scenes.tokenizer(wanted)["input_ids"], skip_special_tokens=True)
    assert "two" in text and text.split() == words.split()


@pytest.mark.parametrize(
    ("encoding", "name"),
    [("utf-16", "rows.jsonl"), ("utf-8-sig", "rows.json"), ("utf-32", "rows.jsonl")],
)
def test_files_of_other_encodings_are_read(encoding: str, name: str, folder: Path) -> None:
    text = "\r\n".join(
        [json.dumps(ROW), json.dumps({**ROW, "reference": [2, "zwölf", 0.5]}, ensure_ascii=False)]
    )
    (folder / name).write_bytes(text.encode(encoding))
    first, second = from_file(folder / name)
    assert first.references == ("3",) and second.references == ("2", "zwölf", "0.5")


def test_a_list_of_rows_is_read_and_errors_name_the_entry(folder: Path) -> None:
    path = folder / "rows.json"
    path.write_text(json.dumps([ROW, {**ROW, "reference": True}], indent=2))
    with pytest.raises(ValueError, match=r"rows\.json:2: references=True; expected text, a number"):
        from_file(path)
    path.write_text(json.dumps([ROW, ROW], indent=2))
    assert len(from_file(path)) == 2 and len(from_file(path, 1)) == 1
    path.write_text(json.dumps(ROW, indent=2))
    assert len(from_file(path)) == 1
    path.write_text("[{,")
    with pytest.raises(ValueError, match=r"rows\.json:1: it is not JSON: Expecting"):
        from_file(path)


def test_base64_pictures_are_read_or_named_in_short(folder: Path) -> None:
    written = base64.b64encode((folder / "a.png").read_bytes()).decode()
    path = folder / "rows.jsonl"
    path.write_text(
        "\n".join(json.dumps({**ROW, "image": image}) for image in ("a.png", written, written))
    )
    first, second, third = from_file(path)
    assert second.images()[0].tobytes() == Image.open(folder / "a.png").convert("RGB").tobytes()
    assert len(second.group) == 16 and second.group == third.group != first.group
    learned = folder / "learn.jsonl"
    for broken in (written[:200], "x" * 5000, written[40:]):
        path.write_text(json.dumps({**ROW, "image": broken}))
        with pytest.raises(ValueError, match=r"^rows\.jsonl:1: ") as error:
            from_file(path)
        assert len(str(error.value)) < 300
        row = {"prompt": "what?", "response": "red"}
        learned.write_text(
            "\n".join(json.dumps({**row, "image": one}) for one in ("a.png", broken, written))
        )
        found = file_examples(learned)
        assert len(found.rows) == 2 and len(found.unusable) == 1
        assert found.unusable[0].startswith("learn.jsonl:2: ") and len(found.unusable[0]) < 300


def test_a_file_to_learn_from_may_be_llavas(folder: Path) -> None:
    path = folder / "llava.json"
    unmatched = chat(("<image> <image> which?", "red"))
    path.write_text(json.dumps([CHAT, unmatched, chat(("what?", "red"), image=["a.png", "a.png"])]))
    found = file_examples(path)
    assert [(e.prompt, e.answer, len(e.earlier), len(e.images())) for e in found.rows] == [
        ("how many shapes are there?", "two", 0, 1),
        ("what color is it?", "red", 1, 1),
        ("what?", "red", 0, 2),
    ]
    assert found.unusable == [
        "llava.json:2: ValueError: the text has 2 <image>, but the row has 1 pictures"
    ]


def test_the_command_judges_llavas_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "llava.json").write_text(json.dumps([CHAT]), encoding="utf-16")
    args = ["eval", "--data", str(folder / "llava.json"), "--tokenizer", "words", "--json"]
    assert run([*args, "--metric", "exact"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["samples"] == 2 and "llava exact" in body["methods"]["unpruned"]["figures"]
    assert run(["eval", "--metric", "exact", "--tasks", "questions"]) == 2
    assert "--metric exact goes with --data" in " ".join(capsys.readouterr().err.split())
