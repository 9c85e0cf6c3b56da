"""Divergence from the unpruned model, against one forward of prompt and answer together."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import foveate
from foveate.eval.divergence import divergence, reference
from foveate.eval.tasks.bundled import bundled
from foveate.methods import parse


@pytest.fixture(scope="module")
def scenes() -> foveate.Loaded:
    return foveate.load("scenes")


@pytest.fixture(scope="module")
def given(scenes: foveate.Loaded) -> Any:
    (sample,) = bundled(["captions"], 1, 500)
    inputs = scenes.inputs(sample.images(), sample.prompt)
    return reference(scenes, inputs, 24)


def naive(scenes: foveate.Loaded, given: Any, spec: str) -> tuple[float, float]:
    """Mean KL and agreement, word by word; right for choices that the prompt alone makes before the decoder."""
    start = given.inputs["input_ids"].shape[1]
    ids = torch.cat([given.inputs["input_ids"], given.answer[None]], 1)
    forced = {**given.inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.inference_mode():
        plain = scenes.model(**forced, use_cache=False).logits[0, start - 1 : -1].double()
        with foveate.apply(scenes.model, *parse(spec)):
            pruned = scenes.model(**forced, use_cache=False).logits[0, start - 1 : -1].double()
    total, same = 0.0, 0
    for want, got in zip(plain.softmax(-1), pruned.softmax(-1), strict=True):
        total += sum(float(p) * math.log(p / q) for p, q in zip(want, got, strict=True) if p > 0)
        same += int(want.argmax() == got.argmax())
    return total / len(plain), same / len(plain)


@pytest.mark.parametrize(
    "spec", ["divprune:keep=0.05", "divprune:keep=0.05,weigh=nearest,merge=mean"]
)
def test_it_is_that_of_one_forward_over_prompt_and_answer(
    scenes: foveate.Loaded, given: Any, spec: str
) -> None:
    found = divergence(scenes, given, parse(spec))
    kl, agreement = naive(scenes, given, spec)
    assert found.kl == pytest.approx(kl, rel=1e-3, abs=1e-6) and found.kl > 1e-5
    assert found.agreement == pytest.approx(agreement) and found.worst >= found.kl


def test_keeping_all_diverges_nowhere(scenes: foveate.Loaded, given: Any) -> None:
    found = divergence(scenes, given, parse("fastv:keep=1.0,weigh=nearest,merge=mean"))
    assert (found.kl, found.agreement, found.worst) == (0.0, 1.0, 0.0)


def test_a_method_that_drops_while_decoding_runs_as_in_generate(
    scenes: foveate.Loaded, given: Any
) -> None:
    """Its probabilities are those of `generate` that is made to say the same words."""
    methods = parse("dyrate:predictor=scenes-0.33-decode,weigh=nearest,merge=mean")
    words = iter(given.answer.tolist())

    def force(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, next(words)] = 0.0
        return forced

    with foveate.apply(scenes.model, *methods):
        out = scenes.model.generate(
            **given.inputs, max_new_tokens=len(given.answer), do_sample=False,
            logits_processor=[force], output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    got = torch.cat(out.logits).float().log_softmax(-1)
    kl = (given.wanted.exp() * (given.wanted - got)).sum(-1).mean()
    found = divergence(scenes, given, methods)
    assert found.kl == pytest.approx(float(kl), rel=1e-3) and found.kl > 1e-4


def test_one_sample_at_a_time(scenes: foveate.Loaded) -> None:
    samples = bundled(["captions"], 2, 500)
    inputs = scenes.encode([(sample.images(), sample.prompt) for sample in samples])
    with pytest.raises(ValueError, match="one at a time"):
        reference(scenes, inputs, 8)
