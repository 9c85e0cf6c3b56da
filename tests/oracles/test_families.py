"""Every family against the masked model: dropping is masking, cached decoding is teacher forcing, counts are right."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import foveate
from foveate.core.method import Method
from models.families import FAMILIES, model
from models.prompts import prompt, together
from models.tiny import IMAGE, VIDEO
from oracles.cases import CASES, STACKS
from oracles.crossing import CROSSED
from oracles.family_check import check, judged
from oracles.teaching import ALIKE, PAIRS

METHODS = {**{name: (case,) for name, case in CASES.items()}, **STACKS}


def differs(name: str, backend: str, method: str, layout: str) -> None:
    far = check(name, backend, METHODS[method], layout)
    assert far > 1e-2, "the method changes nothing, so this test could not fail"


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ALIKE])
def test_dropping_is_masking(name: str) -> None:
    """The one slice that every run takes: attention scores, decode steps that drop more, ragged batches."""
    differs(name, FAMILIES[name].backends[0], "decay", "sizes")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "backend"), PAIRS)
@pytest.mark.parametrize("method", CROSSED)
def test_every_method_in_every_family(method: str, name: str, backend: str) -> None:
    differs(name, backend, method, "sizes")


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["right", "words"])
@pytest.mark.parametrize(("name", "backend"), PAIRS)
def test_every_layout_in_every_family(name: str, backend: str, layout: str) -> None:
    differs(name, backend, "fastv", layout)


@pytest.mark.parametrize("name", FAMILIES)
def test_recomputed_attention_is_the_models_own(name: str) -> None:
    """The contract with each decoder class: the rows that scores see are eager attention's, in every layer."""
    one = prompt(name, (3, "a", 5), seed=1)
    made, oracle = model(name, FAMILIES[name].backends[0]), judged(name, (), one)
    oracle.feed()
    seen = {}

    def watch(view: foveate.View) -> None:
        if view.layer:
            seen[view.layer - 1] = view.attention(torch.tensor([[2, 4, len(one.ids) - 1]]))[0]

    with torch.no_grad(), foveate.apply(made, watch=watch):
        for cached in (True, False):
            made(**together([one]), use_cache=cached)
            for layer, got in seen.items():
                want = oracle.shares[layer][:, [2, 4, len(one.ids) - 1]]
                torch.testing.assert_close(
                    got, want, atol=1e-5, rtol=1e-3, msg=f"{type(made).__name__}, layer {layer}"
                )
    assert len(seen) == len(oracle.layers)


def hooks(made: Any) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in made.modules())


@pytest.mark.parametrize(
    "name", ["qwen2_5_vl", "qwen3_vl", "gemma3", "smolvlm", "llava_onevision", "mistral3"]
)
def test_keep_all_is_the_plain_model(name: str) -> None:
    made, one = model(name), prompt(name, (3, "a", 2, "b", 4), seed=2)
    batch = together([one])
    with torch.no_grad():
        plain = made(**batch).logits
        before = hooks(made)
        with foveate.apply(made, Method(CASES["fastv"].method.score, lambda view: view.alive)):
            assert torch.equal(made(**batch).logits, plain)
        assert torch.equal(made(**batch).logits, plain) and hooks(made) == before
    words = made.generate(
        **batch, max_new_tokens=6, do_sample=False, suppress_tokens=[IMAGE, VIDEO]
    )
    with foveate.apply(made):
        again = made.generate(
            **batch, max_new_tokens=6, do_sample=False, suppress_tokens=[IMAGE, VIDEO]
        )
    assert torch.equal(words, again)
