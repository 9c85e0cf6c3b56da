"""DESIGN §4, oracle 7: one teacher-forced pass equals cached decoding with eviction, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate.artefacts.weighting import UNWEIGHED, Weighting
from foveate.core.predictor import RatePredictor
from foveate.core.scores import RANKINGS
from foveate.engine.anatomy import anatomy_of
from foveate.methods import dyrate
from foveate.methods.dyrate import ranked
from foveate.tune.train.dyrate.attention import soft_key_attention
from foveate.tune.train.dyrate.rollout import (
    Batch,
    Rollout,
    counts,
    roll_out,
    unpruned_logits,
)
from models.families import FAMILIES
from models.families import model as family_model
from models.tiny import FAMILIES as TINY
from models.tiny import IMAGE, VIDEO, Layout, batch, model
from oracles.choosers import tiny_predictor
from oracles.crossing import CLOSE
from oracles.teaching import PAIRS, SLICE, asked, followed, some_answers

NEW = 8
BY_ATTENTION = ("last", "received", "accumulated", "mix")
LAYOUTS = {
    "one": Layout(((3, 0, 5),)),
    "ragged": Layout(((3, 0, 5), (2, 0, 2), (6, 0, 1)), seed=1),
    "several": Layout(((3, 0, 2, 0, 4), (5,), (2, 0, 0, 3)), seed=3),
}
ALL = LAYOUTS | {"ends in an image": Layout(((3, 0), (2, 0, 2)), seed=4)}


def growing(heads: int = 4) -> RatePredictor:
    """A predictor whose rate rises with the response's share of attention, so that tokens leave while decoding."""
    made = RatePredictor(heads, tiny_predictor().rates)
    k = torch.arange(4.0)
    with torch.no_grad():
        if heads == 4:
            made.linear.weight.copy_(0.05 * tiny_predictor().linear.weight)
        weight = made.linear.weight.view(4, heads, 4)  # (rate, head, type)
        weight[:, :, 3] += 16 * k[:, None] / heads  # 2 k s r / heads, s = 8
        made.linear.bias.copy_(-k.square() + k)
    return made


def likeliest(logits: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()


def predictor_for(decode: bool) -> RatePredictor:
    """One that drops while decoding, or, where it acts in the prefill alone, one that drops there."""
    return growing() if decode else tiny_predictor()


def decoded(
    family: str,
    backend: str,
    ranking: Any,
    layer: int,
    layout: str,
    weighting: Weighting = UNWEIGHED,
    **knobs: Any,
) -> tuple[Any, Batch, Any]:
    """A cached generation with eviction, and the batch that teaches the same words."""
    made, inputs = model(family, backend), batch(family, ALL[layout], backend).inputs
    predictor = predictor_for(knobs.get("decode", True))
    method = weighting.on(dyrate(predictor, layer=layer, ranking=ranking, **knobs))
    with foveate.apply(made, method) as trace:
        out = made.generate(
            **inputs, max_new_tokens=NEW, do_sample=False, output_logits=True, return_dict_in_generate=True,
            suppress_tokens=[IMAGE],
        )  # fmt: skip
    prompt = inputs["input_ids"].shape[1]
    return out, followed(made, inputs, out.sequences[:, prompt:].tolist()), trace


RANKED = [
    *((ranking, "llava", "sdpa", layout) for ranking in BY_ATTENTION for layout in LAYOUTS),
    *((ranking, "llava_next", "eager", "several") for ranking in BY_ATTENTION),
]


@pytest.mark.parametrize(("ranking", "family", "backend", "layout"), RANKED)
def test_a_teacher_forced_pass_equals_decoding_with_eviction(
    ranking: Any, family: str, backend: str, layout: str
) -> None:
    layer = 2
    out, taught, trace = decoded(family, backend, ranking, layer, layout)
    made = model(family, backend)
    with torch.no_grad():
        found = roll_out(made, growing(), RANKINGS[ranking], layer, taught, likeliest)
        plain = made(**taught.inputs).logits[:, taught.prompt - 1 : -1]
    wanted = torch.stack(out.logits, 1)
    torch.testing.assert_close(found.logits, wanted, atol=2e-4, rtol=1e-3)
    kept = torch.tensor([trace.prefill(call)[layer] for call in range(NEW)]).T
    assert torch.equal(found.kept.long(), kept)
    has = found.total > 0
    assert (plain - wanted)[has].abs().max() > 0.01, (
        "nothing was dropped, so this test could not fail"
    )
    assert (kept[has].diff(dim=1) < 0).any(), "nothing was dropped while decoding"


FURTHER: list[tuple[str, int, dict[str, Any]]] = [
    ("tower", 2, {}), ("diverse", 1, {}), ("mix", 2, {"protect": "unseen"}), ("even", 0, {"protect": "unseen"}),
    ("tower", 0, {}), ("received", 2, {"decode": False}), ("last", 2, {"layouts": ("ends in an image",)}),
]  # fmt: skip


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize(("ranking", "layer", "knobs"), FURTHER)
def test_teacher_forcing_is_decoding_with_other_rankings_layers_and_knobs(
    ranking: str, layer: int, knobs: dict[str, Any], family: str
) -> None:
    knobs = dict(knobs)
    made, decode = model(family), knobs.get("decode", True)
    predictor = predictor_for(decode)
    layouts = knobs.pop("layouts", ("ragged", "several"))
    changed = 0.0
    for layout in layouts:
        out, taught, trace = decoded(family, "sdpa", ranking, layer, layout, **knobs)
        score = ranked(ranking, knobs.get("protect", "nothing"), layer)
        with torch.no_grad():
            found = roll_out(made, predictor, score, layer, taught, likeliest, decode)
            plain = made(**taught.inputs).logits[:, taught.prompt - 1 : -1]
            bare = roll_out(
                made, predictor, ranked(ranking, "nothing", layer), layer, taught, likeliest
            )
        wanted = torch.stack(out.logits, 1)
        torch.testing.assert_close(found.logits, wanted, atol=2e-4, rtol=1e-3)
        kept = torch.tensor([trace.prefill(call)[layer] for call in range(NEW)]).T
        assert torch.equal(found.kept.long(), kept)
        has = found.total > 0
        assert (plain - wanted)[has].abs().max() > 0.01, (
            "nothing was dropped, so this test could not fail"
        )
        assert bool((kept[has].diff(dim=1) < 0).any()) == decode
        changed = max(changed, float((bare.logits - wanted)[has].abs().max()))
    assert (changed > 0.01) == bool(knobs), f"{knobs} changed nothing"


WEIGHTINGS = {
    "nearest": Weighting("nearest"),
    "nearest, mean": Weighting("nearest", "mean", cutoff=-1.0),
    "mean alone": Weighting("none", "mean", cutoff=0.3),
    "cell": Weighting("cell", strength=0.5),
    "mixed, mean": Weighting("mixed", "mean", place=2.0, cutoff=0.2),
    "uniform, mean": Weighting("uniform", "mean", cutoff=-1.0),
}
SPOKEN: list[tuple[str, str, int, str, bool]] = [
    *((kind, "last", 2, "llava", True) for kind in WEIGHTINGS),
    *((kind, "received", 1, "llava_next", True) for kind in ("nearest, mean", "cell")),
    *(
        (kind, "even", 0, "llava", True)
        for kind in ("nearest, mean", "mean alone", "uniform, mean")
    ),
    ("nearest, mean", "tower", 0, "llava", True),
    *((kind, "received", 2, "llava", False) for kind in WEIGHTINGS),
    ("mixed, mean", "mix", 1, "vipllava", True),
]


@pytest.mark.parametrize(("kind", "ranking", "layer", "family", "decode"), SPOKEN)
def test_a_teacher_forced_pass_weighs_and_averages_as_decoding_does(
    kind: str, ranking: str, layer: int, family: str, decode: bool
) -> None:
    made, predictor = model(family), predictor_for(decode)
    weighting = WEIGHTINGS[kind]
    score = RANKINGS[ranking]
    lacking = [UNWEIGHED]
    if weighting.weigh != "none" and weighting.merge != "none":
        lacking += [
            replace(weighting, weigh="none", place=None, strength=1.0),
            replace(weighting, merge="none", cutoff=None),
        ]
    changed = dict.fromkeys(lacking, 0.0)
    late = False
    for layout in ALL:
        out, taught, trace = decoded(
            family, "sdpa", ranking, layer, layout, weighting, decode=decode
        )
        with torch.no_grad():
            found = roll_out(made, predictor, score, layer, taught, likeliest, decode, weighting)
        wanted = torch.stack(out.logits, 1)
        torch.testing.assert_close(found.logits, wanted, atol=2e-4, rtol=1e-3)
        kept = torch.tensor([trace.prefill(call)[layer] for call in range(NEW)]).T
        assert torch.equal(found.kept.long(), kept)
        assert torch.equal(
            counts(made, predictor, score, layer, taught, likeliest, decode, weighting).long(), kept
        )
        has = found.total > 0
        late |= bool((kept[has].diff(dim=1) < 0).any())
        for less in lacking:
            with torch.no_grad():
                bare = roll_out(made, predictor, score, layer, taught, likeliest, decode, less)
            changed[less] = max(changed[less], float((bare.logits - wanted)[has].abs().max()))
    assert late == decode, "tokens must leave while decoding, or in the prefill alone"
    for less, most in changed.items():
        assert most > 0.005, f"{less} gives the same"


FAMILY_CASES: dict[str, tuple[str, int, Weighting, bool]] = {  # ranking, layer, weights, decode
    "while decoding": ("last", 2, UNWEIGHED, True),
    "weighed": ("mix", 1, Weighting("nearest", "mean", cutoff=0.0), True),
    "from layer 0": ("even", 0, Weighting("nearest", "mean", cutoff=0.0), True),
    "in the prefill": ("received", 2, Weighting("nearest"), False),
}


def check(name: str, backend: str, case: str) -> None:
    """A training pass is `generate` under DyRate, in one family."""
    ranking, layer, weighting, decode = FAMILY_CASES[case]
    made, inputs = family_model(name, backend), asked(name)
    heads = anatomy_of(made).heads
    predictor = growing(heads) if decode else at_once(heads)
    method = weighting.on(dyrate(predictor, layer=layer, ranking=ranking, decode=decode))
    with foveate.apply(made, method) as trace:
        out = made.generate(
            **inputs, max_new_tokens=NEW, do_sample=False, output_logits=True, return_dict_in_generate=True,
            suppress_tokens=[IMAGE, VIDEO],
        )  # fmt: skip
    prompt = inputs["input_ids"].shape[1]
    taught = followed(made, inputs, out.sequences[:, prompt:].tolist())
    score = RANKINGS[ranking]
    with torch.no_grad():
        found = roll_out(made, predictor, score, layer, taught, likeliest, decode, weighting)
        plain = unpruned_logits(made, taught)
    wanted = torch.stack(out.logits, 1)
    torch.testing.assert_close(found.logits, wanted, **CLOSE)
    kept = torch.tensor([trace.prefill(call)[layer] for call in range(NEW)]).T
    assert torch.equal(found.kept.long(), kept)
    assert bool((kept.diff(dim=1) < 0).any()) == decode
    assert (plain - wanted).abs().max() > 0.01, "nothing was dropped, so this test could not fail"


def at_once(heads: int) -> RatePredictor:
    """A predictor that always takes the highest rate."""
    made = RatePredictor(heads, tiny_predictor().rates)
    with torch.no_grad():
        made.linear.weight.zero_()
        made.linear.bias.copy_(torch.arange(4.0))
    return made


@pytest.mark.parametrize(("name", "backend"), SLICE)
def test_a_training_pass_is_decoding_in_every_family(name: str, backend: str) -> None:
    check(name, backend, "weighed")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "backend"), PAIRS)
@pytest.mark.parametrize("case", FAMILY_CASES)
def test_every_kind_of_training_in_every_family(case: str, name: str, backend: str) -> None:
    check(name, backend, case)


@pytest.mark.parametrize("name", ["gemma3", "qwen3_vl", "paligemma2"])
def test_gradients_go_through_every_kind_of_layer(name: str) -> None:
    """Windows, images that see both ways, features between layers, capped products."""
    made = family_model(name, FAMILIES[name].backends[0])
    given = followed(made, asked(name), some_answers(3, NEW))
    predictor = growing(anatomy_of(made).heads)

    def soft(logits: Tensor) -> Tensor:
        chances = logits.softmax(-1)
        return likeliest(logits) + chances - chances.detach()

    found = roll_out(made, predictor, RANKINGS["last"], 1, given, soft)
    (grad,) = torch.autograd.grad(found.logits.square().mean(), [predictor.linear.bias])
    assert bool(grad.isfinite().all()) and grad.abs().max() > 0


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """Tests share models: what one freezes must not stay so for others."""
    yield
    for p in model("llava").parameters():
        p.requires_grad_(True)


def rolled(ranking: str = "last") -> tuple[Any, Any, Rollout]:
    _, taught, _ = decoded("llava", "sdpa", ranking, 1, "ragged")
    made, predictor = model("llava"), tiny_predictor()
    for p in made.parameters():
        p.requires_grad_(False)
    torch.manual_seed(0)

    def choose(logits: Tensor) -> Tensor:
        return torch.nn.functional.gumbel_softmax(logits, tau=1.0, hard=True)

    return made, predictor, roll_out(made, predictor, RANKINGS[ranking], 1, taught, choose)


@pytest.mark.parametrize("family", TINY)
def test_leaving_out_what_was_dropped_equals_masking_it(family: str) -> None:
    """Where the prefill alone decides, no gradient is wanted and one set holds for all steps."""
    made, predictor = model(family), predictor_for(decode=False)
    for layout in ("ragged", "several"):
        _, taught, _ = decoded(family, "sdpa", "received", 2, layout, decode=False)
        with torch.no_grad():
            left_out = roll_out(
                made, predictor, RANKINGS["received"], 2, taught, likeliest, decode=False
            )

        def masked(logits: torch.Tensor) -> torch.Tensor:
            return likeliest(logits) + (soft := logits.softmax(-1)) - soft.detach()

        hidden = roll_out(made, predictor, RANKINGS["received"], 2, taught, masked, decode=False)
        assert hidden.logits.requires_grad and not left_out.logits.requires_grad
        assert (
            torch.equal(hidden.kept.detach(), left_out.kept)
            and (left_out.kept < left_out.total[:, None]).any()
        )
        torch.testing.assert_close(
            left_out.logits[taught.answered],
            hidden.logits[taught.answered].detach(),
            atol=2e-5,
            rtol=1e-4,
        )


def test_gradients_reach_the_predictor_and_nothing_else() -> None:
    made, predictor, found = rolled()
    found.logits.square().mean().backward()
    assert predictor.linear.weight.grad is not None and predictor.linear.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in made.parameters())
    predictor.zero_grad()
    _, predictor, found = rolled()
    found.kept.mean().backward()
    assert predictor.linear.bias.grad[0] > 0 > predictor.linear.bias.grad[-1], (
        "rate 0 keeps more, the last rate less"
    )


@pytest.mark.parametrize("kind", ["nearest, mean", "cell"])
def test_gradients_reach_the_predictor_past_weights_and_means(kind: str) -> None:
    """Numbers and means are taken as given; which tokens are there is learned as ever."""
    weighting = WEIGHTINGS[kind]
    _, taught, _ = decoded("llava", "sdpa", "last", 1, "ragged", weighting)
    made, predictor = model("llava"), tiny_predictor()
    for p in made.parameters():
        p.requires_grad_(False)

    def straight(logits: Tensor) -> Tensor:
        soft = logits.softmax(-1)
        return likeliest(logits) + soft - soft.detach()

    grads = []
    for kind_of in (weighting, UNWEIGHED):
        found = roll_out(made, predictor, RANKINGS["last"], 1, taught, straight, weighting=kind_of)
        (grad,) = torch.autograd.grad(found.logits.square().mean(), [predictor.linear.weight])
        assert bool(grad.isfinite().all()) and grad.abs().max() > 0
        grads.append(grad)
    assert not torch.allclose(*grads)


def test_the_model_attends_as_before_afterwards() -> None:
    made, _, _ = rolled()
    inputs = batch("llava", LAYOUTS["one"]).inputs
    assert made.model.language_model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        assert torch.equal(made(**inputs).logits, made(**inputs).logits)


def test_soft_keys_are_plain_attention_at_one_and_have_a_gradient_at_zero() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    seen = torch.ones(5, 5, dtype=torch.bool).tril().expand(2, -1, -1)
    weight = torch.ones(2, 5, 5)
    plain = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=seen[:, None], scale=0.3, enable_gqa=True
    )
    torch.testing.assert_close(
        soft_key_attention(q, k, v, 0.3, seen, weight), plain.transpose(1, 2)
    )
    weight[:, 3:, 1] = 0
    weight.requires_grad_()
    out = soft_key_attention(q, k, v, 0.3, seen, weight)
    without = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=(seen & (weight > 0))[:, None], scale=0.3, enable_gqa=True
    )
    torch.testing.assert_close(out, without.transpose(1, 2))
    out[:, 4].sum().backward()
    assert weight.grad is not None and weight.grad[0, 4, 1].abs() > 0
    assert (weight.grad[:, 4, 4] != 0).all() and (weight.grad[:, 2] == 0).all()
