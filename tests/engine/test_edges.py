"""Situations that users get into: odd prompts, assisted decoding, compiled and wrapped models, edited masks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, DynamicCache, OPTConfig, Phi3Config

import foveate
from foveate.core.method import Method
from foveate.core.scores import Even
from foveate.engine.cache.layer import KeptLayer
from foveate.methods import fastv, random, visionzip, vtw
from models.tiny import IMAGE, TEXT, Layout, batch, cache_in, held, llava, llava_next, model

ONE = Layout(((3, 0, 5),))
CLOSE = {"atol": 2e-4, "rtol": 1e-3}


@pytest.mark.parametrize("method", [vtw(2), fastv(layer=1, keep=0.5), random(layer=0, keep=0.25)])
def test_a_prompt_that_ends_in_an_image_gets_an_answer(method: Method) -> None:
    """The last token's state is the output, so it stays, and its logits are not those of a zero state."""
    made, inputs = model("llava"), batch("llava", Layout(((3, 0),))).inputs
    with torch.no_grad(), foveate.apply(made, method) as trace:
        logits = made(**inputs).logits[0, -1]
    assert logits.abs().max() > 0
    assert trace.prefill()[-1][0] in (1, 4, 8)


def test_embeddings_in_which_no_image_can_be_told_are_refused() -> None:
    made, data = model("llava"), batch("llava", ONE)
    embeds = data.embeds[0][None]
    with foveate.apply(made, vtw(1)), pytest.raises(ValueError, match="inputs_embeds"):
        made.generate(inputs_embeds=embeds, max_new_tokens=2)
    with foveate.apply(made):
        assert made.generate(inputs_embeds=embeds, max_new_tokens=2).shape[1] == 2


def test_assisted_decoding_takes_tokens_back_and_gives_the_same_answer() -> None:
    made, inputs = model("llava"), dict(batch("llava", ONE).inputs)
    inputs["input_ids"] = inputs["input_ids"].clone()
    inputs["input_ids"][0, -5:] = torch.tensor(
        [9, 10, 11, 9, 10]
    )  # repeated, so that candidates are proposed
    method = random(layer=1, keep=0.5)
    with foveate.apply(made, method):
        plain = made.generate(**inputs, max_new_tokens=12, do_sample=False)
    with foveate.apply(made, method) as trace:
        assisted = made.generate(
            **inputs, max_new_tokens=12, do_sample=False, prompt_lookup_num_tokens=3
        )
    assert torch.equal(plain, assisted)
    assert any(int(done.text[0]) > 1 for done in trace.passes[1:]), (
        "nothing was proposed, so nothing was taken back"
    )


def test_sliding_windows_are_refused_under_flash_attention() -> None:
    """Its kernels would count the window over the tokens that are left; sdpa and eager see original positions."""
    config = llava_next()
    config.text_config.sliding_window = 6
    made = AutoModelForImageTextToText.from_config(config)
    made.model.language_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="sliding"), foveate.apply(made, vtw(1)):
        pass


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (Phi3Config(**TEXT), "q_proj"),
        (
            OPTConfig(
                vocab_size=64,
                hidden_size=32,
                ffn_dim=48,
                num_hidden_layers=4,
                num_attention_heads=4,
            ),
            "no `layers`",
        ),
    ],
)
def test_decoders_of_another_form_are_refused_at_apply(text: Any, what: str) -> None:
    config = llava()
    config.text_config = text
    made = AutoModelForImageTextToText.from_config(config)
    with pytest.raises(ValueError, match=what), foveate.apply(made, vtw(1)):
        pass


def test_a_compiled_forward_is_refused() -> None:
    made = AutoModelForImageTextToText.from_config(llava())
    made.forward = torch.compile(made.forward, backend="eager")
    with pytest.raises(ValueError, match="compiled"), foveate.apply(made, vtw(1)):
        pass


@pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing.:FutureWarning"
)  # peft itself asks so
def test_a_peft_model_works_as_the_model_inside() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    made = AutoModelForImageTextToText.from_config(llava()).eval()
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(made, config).eval()
    inputs = batch("llava", ONE).inputs
    with torch.no_grad():
        plain = wrapped(**inputs).logits
        with foveate.apply(wrapped, fastv(layer=1, keep=1.0)):
            torch.testing.assert_close(wrapped(**inputs).logits, plain, **CLOSE)
        with foveate.apply(wrapped, vtw(1)) as trace:
            assert (wrapped(**inputs).logits - plain)[:, -3:].abs().max() > 1e-3
    assert trace.prefill()[1:] == [[0]] * 3


def test_an_interrupt_leaves_neither_lock_nor_open_cache() -> None:
    made, inputs = model("llava"), batch("llava", ONE).inputs
    cache, interrupting = DynamicCache(config=made.config), [True]

    def schedule(view: foveate.View) -> Tensor:
        if interrupting[0] and view.layer == 2:
            raise KeyboardInterrupt
        return view.alive

    with torch.no_grad(), foveate.apply(made, Method(Even(), schedule)):
        with pytest.raises(KeyboardInterrupt):
            made(**inputs, **held(cache))
        assert not cache.layers[0].engaged or interrupting
        interrupting[0] = False
        made(**inputs)
        interrupting[0] = True
        with pytest.raises(KeyboardInterrupt):
            made(**inputs, **held(DynamicCache(config=made.config)))
    assert not getattr(cache.layers[0], "engaged", False)


def test_an_edited_mask_hides_old_text_also_after_a_drop() -> None:
    """A mask that hides a word of the prompt in a decode step acts as it does on the plain model."""
    made, inputs = model("llava"), batch("llava", ONE).inputs
    word = {"input_ids": torch.tensor([[7]]), "position_ids": torch.tensor([[24]])}
    shown = torch.ones(1, 25, dtype=torch.long)
    hidden = shown.clone()
    hidden[0, 21] = 0
    found = {}
    for name, methods in {"plain": (), "dropped": (random(layer=0, keep=1),)}.items():
        for mask_name, mask in {"shown": shown, "hidden": hidden}.items():
            with torch.no_grad(), foveate.apply(made, *methods):
                cache = cache_in(made(**inputs, use_cache=True))
                found[name, mask_name] = made(**word, attention_mask=mask, **held(cache)).logits
    for name in ("plain", "dropped"):
        assert (found[name, "shown"] - found[name, "hidden"]).abs().max() > 1e-2, name


def test_packed_sequences_are_refused() -> None:
    made, inputs = model("llava"), batch("llava", ONE).inputs
    length = inputs["input_ids"].shape[1]
    positions = torch.cat([torch.arange(length - 3), torch.arange(3)])[None]
    packed = {
        "input_ids": inputs["input_ids"],
        "pixel_values": inputs["pixel_values"],
        "position_ids": positions,
    }
    with foveate.apply(made, vtw(1)), pytest.raises(ValueError, match="packed"):
        made(**packed)


def test_the_cache_moves_between_inference_mode_and_without() -> None:
    made, inputs = model("llava"), batch("llava", ONE).inputs
    word = torch.tensor([[7]])
    wanted = None
    for cache in (DynamicCache(config=made.config), foveate.KeptCache(made.config)):
        with torch.inference_mode():
            made(**inputs, **held(cache))
        with torch.no_grad():
            got = made(input_ids=word, **held(cache)).logits
        wanted = got if wanted is None else wanted
    torch.testing.assert_close(got, wanted, **CLOSE)


@pytest.mark.parametrize("trained", ["q_proj", "v_proj"])
def test_gradients_go_through_a_cache_whose_keys_need_none(trained: str) -> None:
    torch.manual_seed(0)
    made = AutoModelForImageTextToText.from_config(llava()).eval().requires_grad_(False)
    for name, p in made.named_parameters():
        p.requires_grad_(trained in name and "language_model" in name)
    inputs, word, found = batch("llava", ONE).inputs, torch.tensor([[7]]), []
    for cache in (DynamicCache(config=made.config), foveate.KeptCache(made.config)):
        made.zero_grad()
        first = made(**inputs, **held(cache)).logits.square().mean()
        (first + made(input_ids=word, **held(cache)).logits.square().mean()).backward()
        found.append([p.grad.clone() for p in made.parameters() if p.grad is not None])
    assert found[0]
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_cache_of_another_depth_is_refused() -> None:
    made, inputs = model("llava"), batch("llava", ONE).inputs
    cache = foveate.KeptCache(made.config)
    cache.layers = cache.layers[:2]
    with foveate.apply(made), pytest.raises(ValueError, match="2 layers"):
        made(**inputs, **held(cache))


def test_without_a_cache_generate_calls_its_words_responses() -> None:
    """Every step runs the whole input anew; an unrelated prompt that is one token longer is none of its steps."""
    made, inputs = model("llava"), batch("llava", ONE).inputs
    seen: list[int] = []

    def watch(view: foveate.View) -> None:
        if view.layer == 0:
            seen.append(int(view.tokens.are(foveate.Kind.RESPONSE).sum()))
            assert not view.cached

    with foveate.apply(made, watch=watch):
        made.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=False)
    assert seen == [0, 1, 2, 3]
    longer = batch("llava", Layout(((3, 0, 6),), seed=9)).inputs
    with torch.no_grad(), foveate.apply(made, watch=watch):
        made(**inputs, use_cache=False)
        made(**longer, use_cache=False)
    assert seen[4:] == [0, 0]


def test_masks_are_shared_by_layers_that_hold_the_same_tokens() -> None:
    made, data = model("llava"), batch("llava", Layout(((3, 0, 5), (2, 0, 2)), left=True))
    with torch.no_grad(), foveate.apply(made, random(layer=1, keep=0.5)):
        cache = cache_in(made(**data.inputs, use_cache=True))
    layers: list[KeptLayer] = cache.layers
    assert layers[1].slots is layers[2].slots is layers[3].slots
    assert layers[0].slots is not layers[1].slots


@pytest.mark.parametrize("method", [visionzip(keep=0.5), fastv(layer=1, keep=0.5)])
@torch.no_grad()
def test_a_placeholder_that_the_model_says_is_a_word(method: Method) -> None:
    """The step equals the same step with an embedding of another word set to the placeholder's."""
    made, data = model("llava"), batch("llava", ONE)
    twin = copy.deepcopy(made)
    twin.get_input_embeddings().weight[7] = twin.get_input_embeddings().weight[IMAGE]
    found = []
    for network, word in ((made, IMAGE), (twin, 7)):
        with foveate.apply(network, method) as trace:
            first = network(**data.inputs, use_cache=True)
            ids = torch.full((1, 1), word)
            step = network(input_ids=ids, **held(cache_in(first)), use_cache=True)
        found.append((step.logits, list(trace)))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert found[0][1] == found[1][1] and min(row.kept for row in found[0][1]) < 16
