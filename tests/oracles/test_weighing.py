"""Kept tokens that speak for the dropped: weighted and averaged dropping equals a masked model with the same bias."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import foveate
from foveate.core.method import Method
from foveate.core.schedules import Cut
from foveate.core.scores import Even
from foveate.core.weighing import AtCut, Nearest
from foveate.engine import forward
from foveate.methods import parse
from models.families import FAMILIES as EVERY
from models.tiny import FAMILIES, batch, model
from oracles.bare_check import check_bare
from oracles.cases import CASES, LISTED, Case
from oracles.family_check import check as check_family
from oracles.layouts import LAYOUTS, TOLERANCE, oracles
from oracles.speaking import Speaking

SPEAKING = {
    "weighted": Speaking(),
    "both": Speaking(mean=True, cutoff=-0.1),
    "averaged": Speaking("none", mean=True, cutoff=-1.0),
    "cell": Speaking("cell", mean=True, cutoff=-1.0),
    "mixed": Speaking("mixed", place=0.5),
    "uniform": Speaking("uniform"),
    "half": Speaking(strength=0.5),
}
"""Cutoffs are low, since hidden states of random models are hardly alike."""
CUTS = ["random", "downsample", "fastv", "schedule", "divprune"]  # in the prefill
STEPS = ["decay", "dyrate", "st3", "accumulated"]  # while decoding, too
FAR = 50 * TOLERANCE[torch.float32]


def slow(name: str, usual: bool) -> Any:
    return pytest.param(name, marks=[] if usual else [pytest.mark.slow])


@pytest.mark.parametrize("layout", [slow(name, name == "several") for name in LAYOUTS])
@pytest.mark.parametrize(
    ("family", "backend"),
    [
        pytest.param(f, b, marks=[] if f == "llava" or b == "sdpa" else [pytest.mark.slow])
        for f in FAMILIES
        for b in ("sdpa", "eager")
    ],
)
@pytest.mark.parametrize("method", [*CUTS[:3], *STEPS[:2]])
@pytest.mark.parametrize("kind", ["weighted", "both"])
def test_weighing_equals_the_oracle(
    kind: str, method: str, family: str, backend: str, layout: str
) -> None:
    cases = (CASES[method].spoken(SPEAKING[kind]),)
    assert check_bare(family, backend, cases, LAYOUTS[layout]) > FAR


@pytest.mark.parametrize("method", [*CUTS, *STEPS])
@pytest.mark.parametrize("kind", SPEAKING)
def test_every_kind_equals_the_oracle(kind: str, method: str) -> None:
    cases = (CASES[method].spoken(SPEAKING[kind]),)
    assert check_bare("llava", "sdpa", cases, LAYOUTS["left"]) > FAR


@pytest.mark.parametrize(
    "method",
    ["tome", "dymu", "prumerge", "visionzip", "vscan1", "sparsevlm", "sparsevlm table", "pact"],
)
@pytest.mark.parametrize("layout", ["several", "left"])
def test_clusters_of_the_methods_own_equal_the_oracle(method: str, layout: str) -> None:
    cases = (CASES[method].spoken(Speaking("clusters")),)
    assert check_bare("llava", "sdpa", cases, LAYOUTS[layout]) > FAR


@pytest.mark.parametrize(
    "kinds",
    [("weighted", "weighted"), ("both", "both"), ("both", None), (None, "weighted")],
    ids=lambda kinds: "+".join(map(str, kinds)),
)
@pytest.mark.parametrize(
    "stack", [("downsample", "decay"), ("divprune", "fastv"), ("schedule", "dyrate")]
)
def test_cuts_add_up(kinds: tuple[str | None, ...], stack: tuple[str, ...]) -> None:
    cases = tuple(
        CASES[name] if kind is None else CASES[name].spoken(SPEAKING[kind])
        for name, kind in zip(stack, kinds, strict=True)
    )
    assert check_bare("llava", "sdpa", cases, LAYOUTS["several"]) > FAR


@pytest.mark.parametrize("method", [slow(name, False) for name in LISTED])
@pytest.mark.parametrize("kind", ["weighted", "both"])
def test_every_method_equals_the_oracle(kind: str, method: str) -> None:
    cases = (CASES[method].spoken(SPEAKING[kind]),)
    assert check_bare("llava", "eager", cases, LAYOUTS["several"]) > FAR


FEW = ("llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "internvl", "llava_onevision", "mistral3")


@pytest.mark.parametrize("name", [slow(name, name in FEW) for name in EVERY])
@pytest.mark.parametrize("method", ["fastv", "decay"])
def test_every_family_equals_the_masked_model(method: str, name: str) -> None:
    """In the prompt weighted and averaged; while decoding weighted, since the masked model cannot average its cache."""
    speaking = SPEAKING["both"] if method == "fastv" else SPEAKING["weighted"]
    cases = (CASES[method].spoken(speaking),)
    assert check_family(name, EVERY[name].backends[0], cases, "sizes") > 1e-2


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("method", ["divprune", "decay"])
def test_generate_follows_beams(method: str, beams: int) -> None:
    """Whatever beams win: the words' probabilities are the oracle's."""
    case, made = CASES[method].spoken(SPEAKING["both"]), model("llava")
    data = batch("llava", LAYOUTS["left"])
    with foveate.apply(made, case.method):
        out = made.generate(
            **data.inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, num_beams=beams,
            output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
    start = data.inputs["input_ids"].shape[1]
    for i, judge in enumerate(oracles("llava", data, (case,), made)):
        with torch.no_grad():
            logits = judge.feed(data.embeds[i], data.image_of[i])[-1]
            total = 0.0
            for word in out.sequences[i, start:]:
                total += float(logits.log_softmax(-1)[word])
                logits = judge.feed(made.get_input_embeddings()(word)[None], [-1])[-1]
        if beams > 1:  # of length-normalised sums
            assert float(out.sequences_scores[i]) == pytest.approx(total / 4, abs=2e-3)
        else:
            got = sum(
                float(step[i].log_softmax(-1)[word])
                for step, word in zip(out.scores, out.sequences[i, start:], strict=True)
            )
            assert got == pytest.approx(total, abs=2e-3)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_keeping_all_is_the_plain_model_to_the_bit(backend: str) -> None:
    made, given = model("llava", backend), batch("llava", LAYOUTS["several"], backend).inputs
    with torch.no_grad():
        plain = made(**given).logits
        for spec in ("divprune:keep=1.0", "fastv:layer=1,keep=1.0", "tome:keep=1.0"):
            with foveate.apply(made, *parse(f"{spec},weigh=nearest,merge=mean")) as trace:
                assert torch.equal(made(**given).logits, plain)
            assert trace.lost() == 0.0


class One(Nearest):
    """A control: every token speaks for itself alone, but the bias is there, all zeros."""

    def numbers(self, at: AtCut, owner: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(at.numbers)


@pytest.mark.parametrize(("backend", "close"), [("eager", 0.0), ("sdpa", 1e-5)])
def test_a_bias_of_zeros_is_no_bias(backend: str, close: float) -> None:
    """Under eager to the bit; under sdpa a mask may change the kernel, and so the rounding."""
    made, given = model("llava", backend), batch("llava", LAYOUTS["left"], backend).inputs
    logits = []
    for weigh in (None, One()):
        method = Method(Even(), Cut(1, 0.5), weigh=weigh)
        with torch.no_grad(), foveate.apply(made, method):
            logits.append(made(**given).logits)
    torch.testing.assert_close(*logits, atol=close, rtol=0)


def test_weights_need_no_copies_of_shared_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, sdpa is given the keys as they are, and the results are those of copied keys, to the bit."""
    made, given = model("llava"), batch("llava", LAYOUTS["left"]).inputs
    attention = made.model.language_model.layers[0].self_attn
    assert attention.num_key_value_groups > 1
    heads: list[tuple[int, int]] = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def noted(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs["attn_mask"] is not None and kwargs["attn_mask"].is_floating_point():
            heads.append((query.shape[1], key.shape[1]))
        return plain(query, key, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    found = []
    for shares in (forward.shares_keys, lambda *_: False):
        monkeypatch.setattr(forward, "shares_keys", shares)
        with torch.no_grad(), foveate.apply(made, *parse("fastv:layer=1,keep=0.5,weigh=nearest")):
            found.append(made(**given).logits)
    each = len(heads) // 2
    assert each == len(made.model.language_model.layers) - 1  # layers from the cut on
    assert {q // k for q, k in heads[:each]} == {attention.num_key_value_groups}
    assert {q // k for q, k in heads[each:]} == {1}
    assert torch.equal(*found)


@pytest.mark.parametrize("spec", ["random:layer=1,keep=0.5", "dyrate", "downsample:layer=0"])
@pytest.mark.parametrize("kind", ["weighted", "both", "uniform", "cell"])
def test_numbers_sum_to_what_the_images_started_with(kind: str, spec: str) -> None:
    """At every layer and step, as long as each image keeps a token."""
    case = CASES["dyrate"] if spec == "dyrate" else Case(parse(spec)[0], lambda s: s.alive)
    made, data = model("llava"), batch("llava", LAYOUTS["several"])
    seen = []

    def watch(view: foveate.View) -> None:
        numbers = torch.ones_like(view.mask.float()) if view.numbers is None else view.numbers
        kept = (numbers * view.mask).sum(1)
        alive = view.alive > 0
        torch.testing.assert_close(kept[alive], view.total[alive].float(), atol=1e-3, rtol=0)
        seen.append(bool((view.alive < view.total).any()))

    with foveate.apply(made, case.spoken(SPEAKING[kind]).method, watch=watch) as trace:
        made.generate(**data.inputs, max_new_tokens=4, do_sample=False)
    assert any(seen) and trace.lost() == 0.0


def test_a_trace_says_what_is_lost() -> None:
    made, given = model("llava"), batch("llava", LAYOUTS["one"]).inputs
    specs = {"vtw:layer=2,weigh=nearest": 1.0, "vtw:layer=2": 0.0, "random:layer=1,weigh=cell": 0.0}
    for spec, lost in specs.items():
        with torch.no_grad(), foveate.apply(made, *parse(spec)) as trace:
            made(**given)
        assert trace.lost() == lost, spec


def test_scores_see_the_attention_that_was_paid() -> None:
    """A later cut's rows hold the bias: they are those that eager attention returns."""
    made, given = model("llava", "eager"), batch("llava", LAYOUTS["one"], "eager").inputs
    rows = {}

    def watch(view: foveate.View) -> None:
        if view.layer:
            rows[view.layer - 1] = view.attention(view.newest)[0, :, 0]

    for weigh in (None, Nearest()):
        method = Method(Even(), Cut(1, 0.25), weigh=weigh)
        with torch.no_grad(), foveate.apply(made, method, watch=watch):
            paid = made(**given, output_attentions=True).attentions
        for layer, got in rows.items():
            # The plain model's rows are as long as what ran; columns that were dropped have no share.
            want = paid[layer][0, :, -1]
            torch.testing.assert_close(
                got[:, got.sum(0) > 0].sum(0).sort().values, want.sum(0).sort().values
            )
        total = rows[2].sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total))
