"""The cache alone: right in every use of transformers, and never copied per token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache, Lfm2Config, MistralConfig, MistralForCausalLM

import foveate
from foveate.engine.cache.layer import KeptLayer
from foveate.engine.cache.slots import Slots
from models.tiny import batch, cache_in, held, model
from oracles.cases import CASES
from oracles.layouts import DECODING, LAYOUTS, oracles


@pytest.mark.parametrize("options", DECODING)
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_without_any_method_it_decodes_like_dynamic_cache(options: str, backend: str) -> None:
    made, data = model("llava", backend), batch("llava", LAYOUTS["left"])
    torch.manual_seed(1)
    want = made.generate(**data.inputs, max_new_tokens=80, **DECODING[options])
    torch.manual_seed(1)
    extra: dict[str, Any] = {} if options == "no cache" else held(foveate.KeptCache(made.config))
    got = made.generate(**data.inputs, max_new_tokens=80, **DECODING[options], **extra)
    assert torch.equal(got, want)


def test_it_grows_geometrically_and_never_moves_in_between() -> None:
    layer, moves, last = KeptLayer(), 0, None
    whole = torch.randn(2, 3, 4000, 4)
    for t in range(4000):
        with torch.no_grad():
            keys, values = layer.update(whole[:, :, t : t + 1], -whole[:, :, t : t + 1])
        moves += keys.data_ptr() != last
        last = keys.data_ptr()
    assert torch.equal(keys, whole) and torch.equal(values, -whole)
    assert moves <= 14, "log(4000 / 64) / log(1.5) buffers and no more"
    layer.crop(-1000)
    assert layer.get_seq_length() == 3000 and torch.equal(layer.keys, whole[:, :, :3000])
    with pytest.raises(ValueError, match="negative"):
        layer.crop(5)
    layer.batch_select_indices(torch.tensor([1]))
    assert torch.equal(layer.keys, whole[1:, :, :3000])
    layer.batch_repeat_interleave(3)
    assert layer.keys.shape[0] == 3
    layer.reset()
    assert layer.get_seq_length() == 0


def test_a_cache_for_sliding_windows_hides_what_lies_before_them() -> None:
    torch.manual_seed(0)
    size = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    made = MistralForCausalLM(
        MistralConfig(vocab_size=32, num_hidden_layers=2, sliding_window=4, **size)
    ).eval()
    made.generation_config.eos_token_id = None
    ids = torch.arange(3, 14)[None]
    want, got = (
        made.generate(ids, **held(cache), max_new_tokens=8, do_sample=False, output_logits=True,
                      return_dict_in_generate=True)
        for cache in (DynamicCache(config=made.config), foveate.KeptCache(made.config))
    )  # fmt: skip
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(want.logits))


def test_layers_that_are_not_attention_are_refused() -> None:
    with pytest.raises(TypeError, match="attention alone"):
        foveate.KeptCache(Lfm2Config(num_hidden_layers=2, layer_types=["conv", "full_attention"]))


@given(st.data(), st.integers(1, 4), st.integers(1, 24))
def test_eviction_keeps_exactly_what_lives(data: st.DataObject, samples: int, columns: int) -> None:
    """Random columns die, twice, with tokens appended in between; every kept key stays with its column."""
    layer, slots, width = KeptLayer(), Slots(), columns + 3
    marks = (
        torch.arange(width).float().expand(samples, width)[:, None, :, None]
        + torch.arange(samples)[:, None, None, None] * 100
    )
    layer.update(marks[:, :, :columns], marks[:, :, :columns])
    slots = slots.with_run(columns)
    dead = torch.zeros(samples, width, dtype=torch.bool)
    for end in (columns, width):
        draw = data.draw(
            st.lists(
                st.lists(st.booleans(), min_size=end, max_size=end),
                min_size=samples,
                max_size=samples,
            )
        )
        dead[:, :end] |= torch.tensor(draw)
        slots, move = slots.kept(~dead[:, :end])
        if move is not None:
            layer.evict(slots, move)
        held = slots.columns(samples, torch.device("cpu"))
        assert held.shape[1] == layer.keys.shape[2] == slots.length
        for i in range(samples):
            want = {c for c in range(end) if not dead[i, c]}
            assert sorted(c for c in held[i].tolist() if c >= 0) == sorted(want)
            for column, key in zip(held[i].tolist(), layer.keys[i, 0, :, 0].tolist(), strict=True):
                assert column < 0 or key == column + 100 * i
        if end == columns:
            layer.update(marks[:, :, columns:], marks[:, :, columns:])
            slots = slots.with_run(3)
    assert slots.masked or not (slots.columns(samples, torch.device("cpu")) < 0).any()


def test_assisted_decoding_takes_tokens_back() -> None:
    """Prompt lookup crops the cache; under a method it still gives the greedy answer."""
    made, data = model("llava"), batch("llava", LAYOUTS["one"])
    method = foveate.methods.random(layer=0, keep=0.5)
    with foveate.apply(made, method):
        want = made.generate(**data.inputs, max_new_tokens=8, do_sample=False)
        got = made.generate(
            **data.inputs, max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=2
        )
    assert torch.equal(got, want)


@pytest.mark.parametrize("method", ["fastv", "random", "ragged"])
def test_tokens_taken_back_are_forgotten(method: str) -> None:
    """Three decode steps, two taken back, other words in their place: as the oracle that never saw the two."""
    made, data, case = model("llava"), batch("llava", LAYOUTS["left"]), CASES[method]
    judges = oracles("llava", data, (case,), made)
    with torch.no_grad(), foveate.apply(made, case.method):
        out = generate_step(
            made,
            data.inputs["input_ids"],
            data.inputs["attention_mask"],
            data.inputs["pixel_values"],
            None,
        )
        cache, mask = cache_in(out), data.inputs["attention_mask"]
        for word in (5, 6, 7):
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            generate_step(made, torch.full((3, 1), word), mask, None, cache)
        cache.crop(-2)
        mask = mask[:, :-1]
        out = generate_step(made, torch.full((3, 1), 8), mask, None, cache)
        assert cache.layers[0].ledger.columns == mask.shape[1] == cache.get_seq_length()
        for i, judge in enumerate(judges):
            judge.feed(data.embeds[i], data.image_of[i])
            for word in (5, 8):
                want = judge.feed(made.get_input_embeddings()(torch.tensor([word])), [-1])
            torch.testing.assert_close(out.logits[i], want, atol=2e-4, rtol=1e-3)


def generate_step(made: Any, ids: Any, mask: Any, pixels: Any, cache: Any) -> Any:
    places = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    extra = {} if pixels is None else {"pixel_values": pixels}
    return made(
        input_ids=ids,
        attention_mask=mask,
        position_ids=places,
        **held(cache),
        use_cache=True,
        **extra,
    )
