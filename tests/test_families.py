"""Every family against the masked model: dropping is masking, cached decoding is teacher forcing, counts are right."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import foveate
from cases import CASES, STACKS, Case
from families import FAMILIES, judge, model
from foveate.engine.adapters import adapter_for, decoder_of
from masked import Masked
from prompts import Prompt, Segment, prompt, together

CLOSE = {"atol": 3e-4, "rtol": 1e-3}
Layout = tuple[tuple[Segment, ...], ...]
LAYOUTS: dict[str, tuple[Layout, bool]] = {
    "sizes": (((3, "a", 5), (2, "b", 2, "a", 1), (6, "v", 2)), True),
    "right": (((3, "b", 5), (2, "a", 1, "b", 3)), False),
    "words": (((4,), (3, "a", 2)), True),
}
METHODS = {**{name: (case,) for name, case in CASES.items()}, **STACKS}


def layers(made: Any) -> Any:
    return decoder_of(adapter_for(made).body(made)).layers


def judged(name: str, cases: tuple[Case, ...], one: Prompt) -> Masked:
    made = judge(name)
    return Masked(made, layers(made), one.inputs, one.image_of, [c.chooser for c in cases])


def check(name: str, backend: str, cases: tuple[Case, ...], layout: str, steps: int = 3) -> float:
    """`generate` and one bare forward against the oracle; returns how far the plain model is."""
    rows, left = LAYOUTS[layout]
    prompts = [prompt(name, row, seed) for seed, row in enumerate(rows)]
    made, batch = model(name, backend), together(prompts, left=left)
    methods, far = [c.method for c in cases], 0.0
    out = None
    if left:
        with foveate.apply(made, *methods) as trace:
            out = made.generate(
                **batch, max_new_tokens=steps, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
    with torch.no_grad():
        plain = made(**batch).logits
        with foveate.apply(made, *methods) as bare:
            logits = made(**batch, use_cache=True).logits
    for i, one in enumerate(prompts):
        oracle = judged(name, cases, one)
        want = oracle.feed()
        at = slice(len(logits[i]) - len(one.ids), None) if left else slice(0, len(one.ids))
        words = torch.tensor(one.image_of) < 0
        torch.testing.assert_close(logits[i, at][words], want[words], **CLOSE)
        far = max(far, (plain[i, at][words] - want[words]).abs().max().item())
        if out is not None:
            torch.testing.assert_close(out.logits[0][i], want[-1], **CLOSE)
            for step in range(1, steps):
                want = oracle.feed(int(out.sequences[i, batch["input_ids"].shape[1] + step - 1]))
                torch.testing.assert_close(out.logits[step][i], want[-1], **CLOSE)
            assert [r.kept for r in trace if r.sample == i] == [oracle.kept[r.step, r.layer] for r in trace if r.sample == i]
        assert [r.kept for r in bare if r.sample == i] == [oracle.kept[0, r.layer] for r in bare if r.sample == i]
    return far


PAIRS = [(name, backend) for name, family in FAMILIES.items() for backend in family.backends]


@pytest.mark.parametrize(("name", "backend"), PAIRS)
@pytest.mark.parametrize("method", ["fastv"])
def test_dropping_is_masking(name: str, backend: str, method: str) -> None:
    far = check(name, backend, METHODS[method], "sizes")
    assert far > 1e-2, "the method changes nothing, so this test could not fail"


@pytest.mark.parametrize(("name", "backend"), PAIRS)
def test_recomputed_attention_is_the_models_own(name: str, backend: str) -> None:
    """The contract with each decoder class: the rows that scores see are what eager attention computes, in every layer."""
    one = prompt(name, (3, "a", 5), seed=1)
    made, oracle = model(name, backend), judged(name, (), one)
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
                torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-3, msg=f"{type(made).__name__}, layer {layer}")
    assert len(seen) == len(oracle.layers)
