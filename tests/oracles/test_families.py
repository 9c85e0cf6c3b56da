"""Every family against the masked model: dropping is masking, cached decoding is teacher forcing, counts are right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate.core.method import Method
from models.families import FAMILIES, judge, model
from models.prompts import Prompt, Segment, prompt, together
from models.tiny import IMAGE, VIDEO
from oracles.cases import CASES, STACKS, Case
from oracles.crossing import CLOSE, CROSSED, layers
from oracles.masked import Masked
from oracles.teaching import ALIKE, PAIRS

Layout = tuple[tuple[Segment, ...], ...]
LAYOUTS: dict[str, tuple[Layout, bool]] = {
    "sizes": (((3, "a", 5), (2, "b", 2, "a", 1), (6, "v", 2)), True),
    "right": (((3, "b", 5), (2, "a", 1, "b", 3)), False),
    "words": (((4,), (3, "a", 2)), True),
}
METHODS = {**{name: (case,) for name, case in CASES.items()}, **STACKS}


def judged(name: str, cases: tuple[Case, ...], one: Prompt) -> Masked:
    made = judge(name)
    return Masked(
        made, layers(made), one.inputs, one.image_of, [c.chooser for c in cases], one.family.side,
        speaking=[c.speaking for c in cases],
    )  # fmt: skip


def answered(
    made: Any, batch: dict[str, Any], methods: list[Any], steps: int
) -> tuple[Any, foveate.Trace]:
    with foveate.apply(made, *methods) as trace:
        out = made.generate(
            **batch, max_new_tokens=steps, do_sample=False, output_logits=True, return_dict_in_generate=True,
            suppress_tokens=[IMAGE, VIDEO],
        )  # fmt: skip
    return out, trace


@torch.no_grad()
def asked(
    made: Any, batch: dict[str, Any], methods: list[Any]
) -> tuple[Tensor, Tensor, foveate.Trace]:
    """Logits of one bare forward, plain and with the methods."""
    if "mm_token_type_ids" not in batch:  # else the family makes its own
        batch = {**batch, "position_ids": (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)}
    plain = made(**batch).logits
    with foveate.apply(made, *methods) as trace:
        return plain, made(**batch, use_cache=True).logits, trace


def check(name: str, backend: str, cases: tuple[Case, ...], layout: str, steps: int = 3) -> float:
    """`generate` and one bare forward against the oracle; returns how far the plain model is."""
    rows, left = LAYOUTS[layout]
    prompts = [prompt(name, row, seed) for seed, row in enumerate(rows)]
    made, batch = model(name, backend), together(prompts, left=left)
    methods, far = [c.method for c in cases], 0.0
    out, trace = answered(made, batch, methods, steps) if left else (None, foveate.Trace(0))
    plain, logits, bare = asked(made, batch, methods)
    for i, one in enumerate(prompts):
        oracle = judged(name, cases, one)
        want = oracle.feed()
        at = slice(len(logits[i]) - len(one.ids), None) if left else slice(0, len(one.ids))
        words = torch.tensor(one.image_of) < 0
        torch.testing.assert_close(logits[i, at][words], want[words], **CLOSE)
        far = max(far, (plain[i, at][words] - want[words]).abs().max().item())
        for step in range(steps if out else 0):
            torch.testing.assert_close(out.logits[step][i], want[-1], **CLOSE)
            want = oracle.feed(int(out.sequences[i, batch["input_ids"].shape[1] + step]))
        for row in [*trace, *bare]:
            assert row.sample != i or row.kept == oracle.kept[row.step, row.layer], row
    return far


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
