"""The bundled models under vLLM answer as they do in transformers, with and without a method."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from speaking import engine, shut_down

import foveate
from foveate.methods import parse
from foveate.models.export import export
from foveate.models.smol.base import at_hand
from foveate.world import language
from foveate.world.draw import draw
from foveate.world.scenes import sample
from vllm import SamplingParams

METHODS = ("none", "fastv:layer=2,keep=0.25", "divprune:keep=0.25")
LONGEST = 64  # tokens of an answer
PICTURES = 3
WITHOUT = pytest.mark.skipif(not at_hand(), reason="smol's language model is not installed")
pytestmark = pytest.mark.filterwarnings("default::FutureWarning")  # see test_exact.py


@pytest.fixture(scope="module", params=["scenes", pytest.param("smol", marks=WITHOUT)])
def both(request: pytest.FixtureRequest, saved: Path) -> Iterator[tuple[Any, foveate.Loaded]]:
    folder = saved / f"bundled-{request.param}"
    export(request.param, folder)
    llm = engine(folder, [], max_model_len=512)
    yield llm, foveate.load(request.param)
    shut_down(llm)


def test_answers_are_the_same_and_mostly_right(both: tuple[Any, foveate.Loaded]) -> None:
    llm, loaded = both
    prompt = loaded.prompt(1, language.DESCRIPTION_PROMPTS[0])
    scenes = [sample("test", index) for index in range(PICTURES)]
    pictures = [draw(scene).image for scene in scenes]
    given = [{"prompt": prompt, "multi_modal_data": {"image": one}} for one in pictures]
    said = {}
    for method in METHODS:
        params = SamplingParams(temperature=0, max_tokens=LONGEST, extra_args={"foveate": method})
        found = llm.generate(given, params, use_tqdm=False)
        said[method] = [output.outputs[0].text.strip() for output in found]
        for output, picture in zip(found, pictures, strict=True):
            assert list(output.outputs[0].token_ids) == expected(loaded, picture, method)
    right = [language.describe(scene) for scene in scenes]
    assert sum(a == b for a, b in zip(said["none"], right, strict=True)) >= PICTURES - 1
    assert said[METHODS[1]] != said["none"], "nothing was pruned"


@torch.no_grad()
def expected(loaded: foveate.Loaded, picture: Any, method: str) -> list[int]:
    """transformers' greedy answer."""
    inputs = loaded.inputs([picture], language.DESCRIPTION_PROMPTS[0])
    with foveate.apply(loaded.model, *([] if method == "none" else parse(method))):
        out = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=LONGEST)
    return [int(token) for token in out[0, inputs["input_ids"].shape[1] :]]
