"""Every family from a folder, as users have it: load, chat prompt, processor, forward, generate, batches."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import foveate
from foveate.models import processors
from foveate.models.load import load
from foveate.models.prompts import prompt
from models import tiny
from models.families import FAMILIES
from models.processors import PROCESSORS, UNMADE
from models.saved import model_of, save
from models.tiny import IMAGE, VIDEO

MISSING = set(processors.missing_packages())


def picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)


CHATS = [
    ([picture(40, 24)], "what is this ?"),
    ([picture(24, 24), picture(20, 44)], "what is this and what is that ?"),
]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Where the families are saved."""
    return tmp_path_factory.mktemp("families")


def test_every_family_has_a_processor_or_a_reason() -> None:
    assert not PROCESSORS.keys() & UNMADE.keys() and all(UNMADE.values())
    assert PROCESSORS.keys() | UNMADE.keys() == FAMILIES.keys() | tiny.FAMILIES.keys()


def placed(made: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs with positions, where the family does not make its own."""
    if "mm_token_type_ids" in inputs:
        return inputs
    return {**inputs, "position_ids": (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)}


@pytest.mark.parametrize("name", PROCESSORS)
@torch.no_grad()
def test_a_saved_family_loads_and_runs(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load(str(save(name, folder / name)))
    assert loaded.name == str(folder / name) and [*loaded] == [loaded.model, loaded.processor]
    same = model_of(name).state_dict()
    assert all(
        torch.equal(value, same[key])
        for key, value in loaded.model.state_dict().items()
        if key in same
    )
    wanted = PROCESSORS[name]()
    assert type(loaded.processor).__name__ == wanted.kind
    said = capsys.readouterr().err
    needed = {"torchvision", "num2words"} if name == "smolvlm" else {"torchvision"}
    assert loaded.pictures_only == (wanted.video is not None and bool(needed & MISSING))
    assert ("pictures only" in said) == loaded.pictures_only

    side, pad = loaded.tokenizer.padding_side, loaded.tokenizer.pad_token
    loaded.tokenizer.padding_side = (
        "right"  # as some repositories have it; a user's choice that stays
    )
    batch = loaded.encode(CHATS)
    assert (loaded.tokenizer.padding_side, loaded.tokenizer.pad_token) == ("right", pad)
    loaded.tokenizer.padding_side = side

    whole = loaded.model(
        **placed(loaded.model, batch)
    ).logits  # fails unless there is a placeholder for each feature
    for row, (pictures, text) in enumerate(CHATS):
        alone = loaded.inputs(pictures, text)
        length = alone["input_ids"].shape[1]
        assert torch.equal(batch["input_ids"][row, -length:], alone["input_ids"][0])
        assert not batch["attention_mask"][row, :-length].any()
        torch.testing.assert_close(
            whole[row, -1], loaded.model(**alone).logits[0, -1], atol=1e-4, rtol=1e-4
        )
    visual = (batch["input_ids"] == IMAGE).sum(1)
    assert visual.min() > 0 and visual[0] != visual[1]

    suppress = [IMAGE, *range(57, IMAGE)]
    options = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": suppress}
    with foveate.apply(loaded.model, foveate.methods.fastv(layer=1, keep=0.5)) as trace:
        out = loaded.model.generate(**batch, **options)
    kept = torch.tensor(trace.prefill())  # layers x samples
    assert torch.equal(kept[0], visual) and torch.equal(kept[1], (visual + 1) // 2)
    for row, (pictures, text) in enumerate(CHATS):
        alone = loaded.inputs(pictures, text)
        with foveate.apply(loaded.model, foveate.methods.fastv(layer=1, keep=0.5)):
            one = loaded.model.generate(**alone, **options)
        assert torch.equal(out[row, -3:], one[0, -3:])


def test_only_text_is_a_chat_too(folder: Path) -> None:
    for name in ("llava", "qwen2_5_vl", "smolvlm", "gemma3"):
        loaded = load(str(save(name, folder / name)))
        inputs = loaded.inputs([], "what is this ?")
        assert not torch.isin(inputs["input_ids"], torch.tensor([IMAGE, VIDEO])).any()
        assert loaded.model(**inputs).logits.isfinite().all()


@pytest.mark.skipif("torchvision" not in MISSING, reason="torchvision is installed")
def test_videos_are_refused_clearly_without_torchvision(folder: Path) -> None:
    loaded = load(str(save("qwen2_5_vl", folder / "qwen2_5_vl")))
    with pytest.raises(ValueError, match="pictures only"):
        loaded.processor(videos=[np.zeros((2, 16, 16, 3))], text=["<|video_pad|> what"])


@pytest.mark.skipif(not MISSING, reason="torchvision and num2words are installed")
def test_a_processor_for_pictures_can_be_saved_again(folder: Path, tmp_path: Path) -> None:
    loaded = load(str(save("smolvlm", folder / "smolvlm")))
    loaded.model.save_pretrained(tmp_path)
    loaded.processor.save_pretrained(tmp_path)
    again = load(str(tmp_path))
    first, second = (each.encode(CHATS) for each in (loaded, again))
    assert all(torch.equal(first[key], second[key]) for key in first)


def slopes(width: int, height: int) -> np.ndarray:
    """A picture whose colours change slowly: however it is resized, no value is clipped."""
    y, x = np.mgrid[:height, :width]
    shades = [x / width, y / height, (x + y) / (width + height)]
    return (255 * np.stack(shades, -1)).astype(np.uint8)


# Hides torchvision from a new process, then encodes the chats of argv[2] by each family of argv[1].
WITHOUT_TORCHVISION = """
import sys
from importlib.machinery import PathFinder
from pathlib import Path

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] == "torchvision"
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
import torch
from foveate.models.load import load
from foveate.models.processors import missing_packages

assert "torchvision" in missing_packages()
folder, given, result = map(Path, sys.argv[1:])
chats = torch.load(given, weights_only=False)
families = sorted(place for place in folder.iterdir())
torch.save({place.name: dict(load(str(place)).encode(chats)) for place in families}, result)
"""


@pytest.mark.skipif("torchvision" in MISSING, reason="torchvision is not installed")
def test_pictures_are_the_same_without_torchvision(tmp_path: Path) -> None:
    chats = [
        ([slopes(400, 240)], "what is this ?"),
        ([slopes(224, 224), slopes(200, 440)], "what is this and what is that ?"),
    ]
    (tmp_path / "families").mkdir()
    here = {}
    for name in PROCESSORS:
        loaded = load(str(save(name, tmp_path / "families" / name)))
        spread = getattr(loaded.processor.image_processor, "image_std", None) or [1.0]
        here[name] = (loaded.encode(chats), min(spread))
    torch.save(chats, tmp_path / "chats.pt")
    paths = [str(tmp_path / part) for part in ("families", "chats.pt", "there.pt")]
    subprocess.run([sys.executable, "-c", WITHOUT_TORCHVISION, *paths], check=True)
    there = torch.load(tmp_path / "there.pt", weights_only=False)
    assert there.keys() == here.keys()
    for name, (inputs, spread) in here.items():
        assert there[name].keys() == inputs.keys(), name
        for key, value in inputs.items():
            # Picture processors resize at most twice, and each time round to one of 255 levels.
            levels = 2.01 / 255 / spread if value.is_floating_point() else 0
            torch.testing.assert_close(there[name][key], value, rtol=0, atol=levels)


def test_a_module_without_sdpa_takes_what_it_has(folder: Path) -> None:
    loaded = load(str(save("paligemma2", folder / "paligemma2")))
    assert loaded.decoder.config._attn_implementation == "eager"


def test_any_objects_can_be_wrapped(scenes: Any) -> None:
    wrapped = foveate.Loaded(scenes.model, scenes.processor)
    assert wrapped.name and wrapped.decoder is scenes.decoder and wrapped.adapter is scenes.adapter
    with pytest.raises(ValueError, match="has no processor here"):
        foveate.Loaded(scenes.model).inputs([], "what?")
    assert wrapped.prompt(1, "what is this?") == scenes.prompt([None], "what is this?")


def test_nothing_is_imported_or_said_where_the_processor_is_whole() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import foveate; foveate.load('scenes')"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "note:" not in done.stderr


class Words:
    """A tokenizer alone, with a chat template or without."""

    def __init__(
        self, template: str | None = None, pad: str | None = None, end: str | None = "</s>"
    ) -> None:
        self.chat_template, self.pad_token, self.eos_token, self.padding_side = (
            template,
            pad,
            end,
            "right",
        )
        self.image_token = "<image>"
        self.seen: list[Any] = []

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        return "|".join(f"{m['role']}:{m['content']}" for m in messages)

    def __call__(self, **given: Any) -> dict[str, Any]:
        self.seen.append((self.padding_side, self.pad_token, given.get("padding", False)))
        return {}


def test_a_template_for_text_alone_gets_tokens_in_the_text() -> None:
    assert prompt(Words("{{ messages }}"), 2, "what?") == "user:<image>\n<image>\nwhat?"
    parts = "{% if part.type == 'image' %}<image>{% endif %}"
    assert (
        prompt(Words(parts), 1, "what?")
        == "user:[{'type': 'image'}, {'type': 'text', 'text': 'what?'}]"
    )


def test_system_and_earlier_turns() -> None:
    said = prompt(
        Words("{{ messages }}"), 1, "and now?", system="be brief", earlier=[("what?", "a cat")]
    )
    assert said == "system:be brief|user:<image>\nwhat?|assistant:a cat|user:and now?"
    plain = prompt(Words(), 1, "and now?", system="be brief", earlier=[("what?", "a cat")])
    assert plain == "be brief USER: <image> what? ASSISTANT: a cat USER: and now? ASSISTANT:"


def test_a_template_that_refuses_is_a_users_mistake(folder: Path) -> None:
    loaded = load(str(save("llava", folder / "llava")))
    loaded.processor.chat_template = "{{ raise_exception('no system') }}{# image #}"
    with pytest.raises(ValueError, match="refuses this chat: no system"):
        loaded.prompt(1, "what?", system="be brief")


def test_a_missing_padding_token_is_lent_the_end_token() -> None:
    from foveate.models.prompts import tensors  # noqa: PLC0415

    words = Words()
    tensors(words, [[], []], ["a", "b"])
    assert words.seen == [("left", "</s>", True)]
    assert (words.padding_side, words.pad_token) == ("right", None)
    tensors(words, [[]], ["a"])
    assert words.seen[1] == ("right", None, False)
    with pytest.raises(ValueError, match="neither a padding nor an end-of-sequence token"):
        tensors(Words(end=None), [[], []], ["a", "b"])


def test_the_files_of_an_older_repository(folder: Path, tmp_path: Path) -> None:
    """No processor_config.json: the picture processor's file names the class, the chat template has its old file."""
    for name in ("qwen2_5_vl", "llava", "internvl"):
        new, old = load(str(save(name, folder / name))), tmp_path / name
        shutil.copytree(folder / name, old)
        said = json.loads((old / "processor_config.json").read_text())
        kept = json.loads((old / "preprocessor_config.json").read_text())
        (old / "preprocessor_config.json").write_text(
            json.dumps(kept | {"processor_class": said["processor_class"]})
        )
        (old / "chat_template.json").write_text(
            json.dumps({"chat_template": new.processor.chat_template})
        )
        (old / "chat_template.jinja").unlink()
        options = {key: value for key, value in said.items() if key != "processor_class"}
        (old / "processor_config.json").unlink()
        if options:  # such options have no other place
            (old / "processor_config.json").write_text(json.dumps(options))
        first, second = (each.encode(CHATS) for each in (new, load(str(old))))
        assert all(torch.equal(first[key], second[key]) for key in first), name
