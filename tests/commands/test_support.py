"""What is supported and what is refused: docs, `foveate doctor`, and what a new transformers may change."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from transformers import CONFIG_MAPPING

import foveate
from foveate.cli.app import run
from foveate.doctor.examine import examine
from foveate.doctor.selfcheck import placeholder_inputs, self_check
from foveate.engine.adapters import adapter_for, adapters
from foveate.engine.anatomy import anatomy_of, hollow
from foveate.engine.decoders import PROVEN
from foveate.engine.refused import REFUSED
from foveate.methods import vtw
from foveate.models.loaded import Loaded
from models.families import FAMILIES, model
from models.prompts import prompt, together
from models.tiny import CACHE, NEWEST, cache_in, checkpointing
from models.tiny import FAMILIES as ALIKE
from table import PAGE, table

UNTESTED = {"deepseek_vl_hybrid": "deepseek_vl's decoder and placeholders behind two towers"}


def test_the_page_of_families_is_up_to_date() -> None:
    assert PAGE.read_text() == table(), "docs/families.md is old; run: python tests/table.py"


def test_every_adapter_has_a_tiny_model_and_every_proven_decoder_is_run() -> None:
    configs = [family.config() for family in FAMILIES.values()] + [
        make() for make in ALIKE.values()
    ]
    assert {c.model_type for c in configs} | set(UNTESTED) == set(adapters())
    assert {c.get_text_config().model_type for c in configs} == set(PROVEN)


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_families_exist_and_are_refused(kind: str) -> None:
    class Stand:
        config = type("Config", (), {"model_type": kind, "vision_config": {}})

    assert not NEWEST or kind in CONFIG_MAPPING, (
        f"transformers has no {kind} any more; take it off engine/refused.py"
    )
    with pytest.raises(ValueError, match="is not supported"):
        adapter_for(Stand())


def test_a_decoder_that_nobody_has_proven_is_refused() -> None:
    config = FAMILIES["internvl"].config()
    config.text_config = tf.OlmoConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                       num_attention_heads=4, pad_token_id=0)  # fmt: skip
    found = examine("olmo", Loaded(hollow(config)))
    assert not found.supported and "nobody has proven" in (found.reason or "")


LAYER = ("hidden_states", "attention_mask", "position_embeddings", CACHE)


@pytest.mark.parametrize("name", FAMILIES)
def test_contract_with_the_decoder(name: str) -> None:
    """Names what a new transformers has changed in a decoder, before any number goes wrong."""
    made = model(name, FAMILIES[name].backends[0])
    decoder, said = (
        anatomy_of(made).decoder,
        f"transformers {tf.__version__}, {type(made).__name__}",
    )
    layer = decoder.layers[0]
    taken = inspect.signature(layer.forward).parameters
    for argument in LAYER:
        assert argument in taken, (
            f"{said}: {type(layer).__name__}.forward no longer takes {argument}"
        )
    for attribute in ("q_proj", "k_proj", "v_proj", "head_dim", "scaling", "config"):
        assert hasattr(layer.self_attn, attribute), (
            f"{said}: {type(layer.self_attn).__name__} has no {attribute}"
        )
    module = inspect.getmodule(type(layer.self_attn))
    assert hasattr(module, "apply_rotary_pos_emb"), f"{said}: {module} has no apply_rotary_pos_emb"
    seen: dict[str, Any] = {}

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.update(kwargs, hidden_states=args[0] if args else kwargs["hidden_states"])

    handle = layer.register_forward_pre_hook(look, with_kwargs=True)
    batch = together([prompt(name, (3, "a", 5), 1), prompt(name, (2, "a", 1), 2)])
    with torch.no_grad():
        out = made(**batch, use_cache=True)
    handle.remove()
    cos, sin = seen["position_embeddings"]
    length = batch["input_ids"].shape[1]
    assert cos.ndim == sin.ndim == 3 and cos.shape[1] == length, (
        f"{said}: rotations are now {tuple(cos.shape)}"
    )
    mask = seen["attention_mask"]
    assert mask.ndim == 4 and mask.shape[2:] == (length, length), (
        f"{said}: masks are now {tuple(mask.shape)}"
    )
    assert type(cache_in(out)).__name__ == "DynamicCache", (
        f"{said}: the cache is {type(cache_in(out))}"
    )
    with foveate.apply(made, vtw(1)):
        pass
    if made.supports_gradient_checkpointing:
        checkpointing(made, True)
        with pytest.raises(ValueError, match="gradient checkpointing"):
            foveate.apply(made, vtw(1))
        checkpointing(made, False)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3", "internvl", "paligemma2"])
def test_the_self_check_passes_and_can_fail(name: str) -> None:
    made = model(name, FAMILIES[name].backends[0])
    checks = self_check(made, together([prompt(name, (3, "a", 5), 1)]))
    assert len(checks) == 3 and all(check.passed for check in checks), checks
    assert all(check.against is None or check.against > 100 * check.error for check in checks)
    assert all(check.passed for check in self_check(made, placeholder_inputs(made)))

    def shift(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        kept = kwargs["hidden_states"] if not args else args[0]
        return output + 0.1 * (kept.shape[1] < length)

    length = together([prompt(name, (3, "a", 5), 1)])["input_ids"].shape[1]
    layer = anatomy_of(made).layers[-1]
    handle = layer.register_forward_hook(
        shift, with_kwargs=True
    )  # something that dropping changes and masking not
    try:
        assert not all(
            check.passed for check in self_check(made, together([prompt(name, (3, "a", 5), 1)]))
        )
    finally:
        handle.remove()


def test_doctor_of_a_configuration_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    FAMILIES["qwen3_vl"].config().save_pretrained(tmp_path)
    assert run(["doctor", str(tmp_path / "config.json"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["family"] == "qwen3_vl" and told["supported"] and told["facts"]["layers"] == 4
    assert "M-RoPE" in told["facts"]["positions"] and told["facts"]["placeholder ids"] == [63, 62]
    assert run(["doctor", str(tmp_path)]) == 0 and "qwen3_vl" in capsys.readouterr().out


def test_doctor_of_a_family_that_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tf.MllamaConfig().save_pretrained(tmp_path)
    assert run(["doctor", str(tmp_path / "config.json")]) == 1
    assert "cross-attention" in " ".join(capsys.readouterr().out.split())


def test_doctor_with_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "scenes", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (
        told["healthy"]
        and len(told["checks"]) == 3
        and told["facts"]["visual tokens per image"] == 196
    )


@pytest.mark.parametrize("content", [None, "{", '{"model_type": "llama"}', "{}"])
def test_doctor_says_in_one_line_what_it_cannot_read(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    assert run(["doctor", str(path)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith("error:")
