"""DESIGN §4: what is dropped is exactly what masking would have dropped."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import foveate
from models.tiny import FAMILIES, LAYERS, Layout, batch, model
from oracles.bare_check import check_bare
from oracles.cases import CASES, METHODS, crossed
from oracles.layouts import LAYOUTS, TOLERANCE, hooks, oracles

BACKENDS = ("sdpa", "eager")


def usual(family: str, backend: str, layout: str) -> bool:
    """Every layout on one model, and one or two on the others."""
    return (family, backend) == ("llava", "sdpa") or (
        layout == "several" and (family == "llava" or backend == "sdpa")
    )


@pytest.mark.parametrize(
    ("method", "family", "backend", "layout"), crossed(METHODS, usual, FAMILIES, BACKENDS, LAYOUTS)
)
def test_dropping_equals_masking_and_differs_from_the_plain_model(
    method: str, family: str, backend: str, layout: str
) -> None:
    far = check_bare(family, backend, METHODS[method], LAYOUTS[layout])
    assert far > 50 * TOLERANCE[torch.float32], (
        "the method changes nothing, so this test could not fail"
    )


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Batches of 1-4 samples with 0-3 images, text of 1-6 tokens between, padded on either side."""
    samples = []
    for _ in range(draw(st.integers(1, 4))):
        parts = [draw(st.integers(1, 6))]
        for _ in range(draw(st.integers(0, 3))):
            parts += [0] + ([draw(st.integers(1, 5))] if draw(st.booleans()) else [])
        samples.append((*parts, draw(st.integers(1, 4))))
    return Layout(tuple(samples), draw(st.booleans()), draw(st.integers(0, 1000)))


@given(
    layouts(),
    st.sampled_from(sorted(METHODS)),
    st.sampled_from(sorted(FAMILIES)),
    st.sampled_from(["sdpa", "eager"]),
)
def test_any_layout(layout: Layout, method: str, family: str, backend: str) -> None:
    check_bare(family, backend, METHODS[method], layout, steps=2)
    assert layout.samples


@pytest.mark.parametrize(
    ("method", "family", "backend"),
    crossed(METHODS, lambda *place: place == ("llava", "sdpa"), FAMILIES, BACKENDS),
)
def test_generate_equals_the_oracle(method: str, family: str, backend: str) -> None:
    cases, made = METHODS[method], model(family, backend)
    data = batch(family, LAYOUTS["left"], backend)
    with foveate.apply(made, *(c.method for c in cases)) as trace:
        out = made.generate(
            **data.inputs,
            max_new_tokens=5,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    start = data.inputs["input_ids"].shape[1]
    for i, judge in enumerate(oracles(family, data, cases, made)):
        with torch.no_grad():
            want = judge.feed(data.embeds[i], data.image_of[i])[-1]
            for step in range(5):
                torch.testing.assert_close(
                    out.logits[step][i], want, atol=TOLERANCE[torch.float32], rtol=1e-3
                )
                word = out.sequences[i, start + step]
                want = judge.feed(made.get_input_embeddings()(word)[None], [-1])[-1]
    assert {row.step for row in trace.kept} == set(range(5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [name for name, case in CASES.items() if case.content_free])
def test_half_precision(method: str, dtype: torch.dtype) -> None:
    case, made = CASES[method], model("llava", "sdpa", dtype)
    data = batch("llava", LAYOUTS["left"], "sdpa", dtype)
    with torch.no_grad(), foveate.apply(made, case.method):
        got = made(**data.inputs).logits
    for i, judge in enumerate(oracles("llava", data, (case,), made)):
        with torch.no_grad():
            want = judge.feed(data.embeds[i], data.image_of[i])[-1]
        scale = want.abs().max().item()
        torch.testing.assert_close(
            got[i, data.columns[i]][-1], want, atol=TOLERANCE[dtype] * scale, rtol=0
        )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_keep_all_is_the_plain_model_to_the_bit(family: str, backend: str) -> None:
    made, data = model(family, backend), batch(family, LAYOUTS["several"], backend)
    with torch.no_grad():
        plain = made(**data.inputs).logits
        before = hooks(made)
        with foveate.apply(made, foveate.methods.fastv(layer=1, keep=1.0)):
            assert hooks(made) > before
            assert torch.equal(made(**data.inputs).logits, plain)
        assert hooks(made) == before
        assert torch.equal(made(**data.inputs).logits, plain)


def test_the_trace_counts_every_layer() -> None:
    made, data = model("llava"), batch("llava", LAYOUTS["one"])
    with torch.no_grad(), foveate.apply(made, foveate.methods.fastv(layer=2, keep=0.5)) as trace:
        made(**data.inputs)
    assert trace.prefill() == [[16], [16], [8], [8]] and len(trace.kept) == LAYERS
    assert trace.mean_kept() == pytest.approx(0.75)
