"""Every way a model is run: beams, samples, turns, gradients, threads, errors; and what is refused."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
)

import foveate
from foveate.core.method import Method
from foveate.core.schedules import Cut
from foveate.core.scores import Even
from foveate.engine.adapters import adapters
from foveate.methods import downsample, factories, fastv, vtw
from models.tiny import CACHE, FAMILIES, IMAGE, LAYERS, Layout, batch, cache_in, held, model
from oracles.cases import CASES, LISTED, METHODS, crossed
from oracles.layouts import DECODING, LAYOUTS, TOLERANCE, oracles
from oracles.oracle import Oracle

CLOSE = {"atol": TOLERANCE[torch.float32], "rtol": 1e-3}


def test_what_is_discovered_is_what_is_listed() -> None:
    assert set(LISTED) == set(factories())
    assert set(FAMILIES) <= set(adapters())  # the others: test_support.py


def generate(made: Any, inputs: dict[str, Any], methods: tuple[Method, ...], **options: Any) -> Any:
    torch.manual_seed(1)
    with foveate.apply(made, *methods):
        return made.generate(
            **inputs, max_new_tokens=4, return_dict_in_generate=True, output_logits=True, **options
        )


@pytest.mark.parametrize("options", DECODING)
def test_keep_all_decodes_like_the_plain_model(options: str) -> None:
    made, data = model("llava"), batch("llava", LAYOUTS["left"])
    torch.manual_seed(1)
    plain = made.generate(**data.inputs, max_new_tokens=4, **DECODING[options])
    kept = generate(made, data.inputs, (fastv(layer=1, keep=1.0),), **DECODING[options]).sequences
    assert torch.equal(plain, kept)


@pytest.mark.parametrize(
    ("method", "options"),
    crossed(
        METHODS,
        lambda options: options == "beams",
        ["greedy", "beams", "beams of several", "several"],
    ),
)
def test_whatever_is_decoded_scores_as_the_oracle_scores_it(method: str, options: str) -> None:
    """The tokens that any decoding chose, fed to the oracle, get the logits that the model had for them."""
    made, data, cases = model("llava"), batch("llava", LAYOUTS["left"]), METHODS[method]
    out = generate(made, data.inputs, tuple(c.method for c in cases), **DECODING[options])
    start = data.inputs["input_ids"].shape[1]
    each = len(out.sequences) // len(data.embeds)
    for row, sequence in enumerate(out.sequences):
        judge = oracles("llava", data, cases, made)[row // each]
        beam = row if out.get("beam_indices") is None else None
        with torch.no_grad():
            want = judge.feed(data.embeds[row // each], data.image_of[row // each])[-1]
            for step, word in enumerate(sequence[start:]):
                index = int(out.beam_indices[row, step]) if beam is None else beam
                torch.testing.assert_close(out.logits[step][index], want, **CLOSE)
                want = judge.feed(made.get_input_embeddings()(word)[None], [-1])[-1]


@pytest.mark.parametrize(
    ("method", "backend"), crossed(CASES, lambda backend: backend == "sdpa", ["sdpa", "eager"])
)
def test_a_second_turn_with_a_second_image(method: str, backend: str) -> None:
    made, case = model("llava", backend), CASES[method]
    first, second = (
        batch("llava", Layout(((3, 0, 4), (2, 0, 6)), seed=1)),
        batch("llava", Layout(((2, 0, 3),) * 2, seed=2)),
    )
    first_ids, mask = first.inputs["input_ids"], first.inputs["attention_mask"]
    with torch.no_grad(), foveate.apply(made, case.method):
        cache = DynamicCache(config=made.config)
        made(
            **first.inputs,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            **held(cache),
            use_cache=True,
        )
        word = torch.full((2, 1), 9)
        mask = torch.cat([mask, torch.ones(2, 1, dtype=mask.dtype)], 1)
        made(
            input_ids=word,
            attention_mask=mask,
            position_ids=mask.cumsum(1)[:, -1:] - 1,
            **held(cache),
        )
        mask = torch.cat([mask, second.inputs["attention_mask"]], 1)
        got = made(
            input_ids=second.inputs["input_ids"], pixel_values=second.inputs["pixel_values"], attention_mask=mask,
            position_ids=mask.cumsum(1)[:, -second.inputs["input_ids"].shape[1] :] - 1, **held(cache),
        ).logits  # fmt: skip
        assert (
            cache.get_seq_length()
            == mask.shape[1]
            == first_ids.shape[1] + 1 + second.inputs["input_ids"].shape[1]
        )
        for i, judge in enumerate(oracles("llava", first, (case,), made)):
            judge.feed(first.embeds[i], first.image_of[i])
            judge.feed(made.get_input_embeddings()(word[0]), [-1])
            want = judge.feed(second.embeds[i], second.image_of[i])
            text = torch.tensor(second.image_of[i]) < 0
            torch.testing.assert_close(got[i][text], want[text], **CLOSE)


def test_a_second_turn_in_a_second_apply() -> None:
    made, data, judge = (
        model("llava"),
        batch("llava", LAYOUTS["one"]),
        Oracle(model("llava"), [], 4),
    )
    method = fastv(layer=1, keep=0.5)
    judge.choosers = [CASES["fastv"].chooser]
    with torch.no_grad():
        with foveate.apply(made, method):
            cache = cache_in(made(**data.inputs, use_cache=True))
        words = torch.tensor([[5, 6, 7]])
        with foveate.apply(made, method) as trace:
            got = made(input_ids=words, **held(cache)).logits[0]
        judge.feed(data.embeds[0], data.image_of[0])
        torch.testing.assert_close(
            got, judge.feed(made.get_input_embeddings()(words[0]), [-1] * 3), **CLOSE
        )
    assert [row.kept for row in trace.kept] == [16, 8, 8, 8]


def test_pooling_in_a_second_turn_merges_new_tokens_alone() -> None:
    made, data = model("llava"), batch("llava", LAYOUTS["one"])
    with torch.no_grad(), foveate.apply(made, downsample(keep=0.25, pool=True)) as trace:
        cache = cache_in(made(**data.inputs, use_cache=True))
        rest = {k: v for k, v in data.inputs.items() if k != "attention_mask"}
        out = made(**rest, **held(cache))
    assert trace.prefill(1)[0] == [8]
    assert out.logits.isfinite().all()


def test_embeddings_in_place_of_ids() -> None:
    made, data = model("llava"), batch("llava", LAYOUTS["one"])
    embeds = made.get_input_embeddings()(data.inputs["input_ids"])
    rest = {k: v for k, v in data.inputs.items() if k != "input_ids"}
    with torch.no_grad(), foveate.apply(made, fastv(layer=1, keep=0.5)) as trace:
        a = made(**data.inputs).logits
        b = made(inputs_embeds=embeds, **rest).logits
    assert torch.equal(a, b) and trace.prefill(1)[-1] == [8]


@pytest.mark.parametrize("method", ["fastv", "random", "ragged", "decay"])
def test_gradients_are_the_oracles(method: str) -> None:
    made, data, case = model("llava"), batch("llava", LAYOUTS["left"]), CASES[method]
    weight = made.model.language_model.layers[2].mlp.up_proj.weight

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        (found,) = torch.autograd.grad(loss, weight)
        return found

    losses = []
    with foveate.apply(made, case.method):
        logits = made(**data.inputs, use_cache=False).logits
    for i, judge in enumerate(oracles("llava", data, (case,), made)):
        text = torch.tensor(data.image_of[i]) < 0
        losses.append(
            (
                logits[i, data.columns[i]][text].logsumexp(-1).sum(),
                judge.feed(data.embeds[i], data.image_of[i])[text].logsumexp(-1).sum(),
            )
        )
    got, want = (gradient(sum(pair[k] for pair in losses)) for k in (0, 1))
    assert want.abs().max() > 1e-3
    torch.testing.assert_close(got, want, atol=2e-3, rtol=1e-2)


def test_a_cached_pass_has_gradients_too() -> None:
    made, data = model("llava"), batch("llava", LAYOUTS["one"])
    with foveate.apply(made, fastv(layer=1, keep=0.5)):
        out = made(**data.inputs, use_cache=True)
        more = made(input_ids=torch.tensor([[4]]), **held(cache_in(out))).logits
    weight = made.model.language_model.layers[0].self_attn.k_proj.weight
    assert torch.autograd.grad(more.sum(), weight)[0].abs().max() > 0


def test_outputs_of_every_form() -> None:
    made, data = model("llava", "eager"), batch("llava", LAYOUTS["left"])
    ids = data.inputs["input_ids"]
    labels = ids.masked_fill((ids == IMAGE) | (data.inputs["attention_mask"] == 0), -100)
    with torch.no_grad(), foveate.apply(made, fastv(layer=1, keep=0.5)):
        out = made(**data.inputs, labels=labels, output_hidden_states=True, output_attentions=True)
        loss, logits, *_ = made(**data.inputs, labels=labels, return_dict=False)
        last = made.model(**data.inputs).last_hidden_state
    assert torch.equal(loss, out.loss)
    assert torch.equal(logits, out.logits)
    assert torch.equal(made.lm_head(last), logits)
    kept = data.inputs["attention_mask"].sum(1).max().item() - 8
    assert [h.shape[1] for h in out.hidden_states] == [24, 24, kept, kept, kept]
    assert [a.shape[2:] for a in out.attentions] == [(24, 24)] + [(kept, kept)] * 3


def test_without_images_nothing_happens() -> None:
    made = model("llava")
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        plain = made(input_ids=ids).logits
        with foveate.apply(made, vtw(layer=1), fastv(layer=1)) as trace:
            assert torch.equal(made(input_ids=ids).logits, plain)
    assert {row.kept for row in trace.kept} == {0} and trace.mean_kept() == 1.0


def test_several_images_share_a_quota() -> None:
    made, data = model("llava"), batch("llava", Layout(((3, 0, 2, 0, 4),)))
    seen: list[torch.Tensor] = []

    def spy(view: foveate.View) -> torch.Tensor:
        score = torch.arange(view.visual.shape[1]).expand_as(view.visual).float()
        seen.append(view.tokens.image.gather(1, view.visual))
        return score

    with (
        torch.no_grad(),
        foveate.apply(made, Method(spy, Cut(1, 0.5), within="image"), Method(spy, Cut(2, 0.25))),
    ):
        made(**data.inputs)
    assert seen[1][0].bincount().tolist() == [8, 8]


def test_merging_replaces_the_kept() -> None:
    """Pooling at layer 0 equals the plain model on pooled embeddings at the kept positions."""
    made, data = model("llava"), batch("llava", LAYOUTS["one"])
    with torch.no_grad(), foveate.apply(made, downsample(layer=0, keep=0.25, pool=True)):
        got = made(**data.inputs).logits[0]
    rows = data.embeds[0][3:19].view(4, 4, -1)
    kept, embeds, places = {(0, 0), (0, 2), (2, 0), (2, 2)}, [], []
    for r in range(4):
        for c in range(4):
            if (r, c) in kept:
                near = [
                    rows[y, x] for y in range(4) for x in range(4) if nearest(y, x, kept) == (r, c)
                ]
                embeds.append(torch.stack(near).mean(0))
                places.append(3 + 4 * r + c)
    whole = torch.cat([data.embeds[0][:3], torch.stack(embeds), data.embeds[0][19:]])
    positions = torch.tensor([[0, 1, 2, *places, *range(19, 24)]])
    with torch.no_grad():
        hidden = made.model.language_model(
            inputs_embeds=whole[None], position_ids=positions
        ).last_hidden_state
        want = made.lm_head(hidden)[0]
    torch.testing.assert_close(got[-5:], want[-5:], **CLOSE)


def nearest(y: int, x: int, kept: set[tuple[int, int]]) -> tuple[int, int]:
    return min(sorted(kept), key=lambda k: (k[0] - y) ** 2 + (k[1] - x) ** 2)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_rows_are_eager_attention(family: str, cached: bool) -> None:
    """To 1e-6 of what transformers' eager mode returns, under sdpa."""
    eager, made = model(family, "eager"), model(family)
    data = batch(family, LAYOUTS["right"])
    with torch.no_grad():
        want = eager(**data.inputs, output_attentions=True).attentions
        rows: dict[int, torch.Tensor] = {}

        def spy(view: foveate.View) -> torch.Tensor:
            if view.layer:
                rows[view.layer - 1] = view.attention(view.newest)
            return view.alive

        with foveate.apply(made, Method(Even(), spy)):
            made(**data.inputs, use_cache=cached)
    assert len(rows) == LAYERS - 1
    for layer, got in rows.items():
        for i, at in enumerate(data.columns):
            torch.testing.assert_close(
                got[i, :, 0], want[layer][i, :, at.stop - 1], atol=1e-5, rtol=0
            )


def test_contract_what_transformers_gives_a_decoder_layer() -> None:
    """If this fails, a new transformers calls layers differently: see Forward.before_layer."""
    made, data = model("llava"), batch("llava", LAYOUTS["one"])
    calls: list[tuple[int, set[str]]] = []

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((len(args), set(kwargs)))

    handle = made.model.language_model.layers[1].register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad():
        made(**data.inputs)
    handle.remove()
    positional, named = calls[0]
    assert positional == 1
    assert {"attention_mask", "position_embeddings", "position_ids", CACHE} <= named
    attention = made.model.language_model.layers[0].self_attn
    assert {"q_proj", "k_proj", "head_dim", "scaling"} <= set(dir(attention))
    assert hasattr(inspect.getmodule(type(attention)), "apply_rotary_pos_emb")
