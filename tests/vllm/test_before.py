"""The way "before": short prompts, the whole of vLLM at work, and the answers of transformers + `foveate.apply`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
from speaking import Prompt, Reference, apart, check, engine, in_steps, prompt, request
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.exceptions import VLLMValidationError

from vllm import LLM

WEIGHS = "divprune:keep=0.25,weigh=nearest,merge=mean"
FEW = ["divprune:keep=0.5", "visionzip:keep=8", WEIGHS]
EVERY = [
    *FEW,
    "random:keep=0.3",
    "downsample",
    "flowcut",
    "vispruner",
    "vscan1",
    "tome",
    "tome:weigh=clusters,merge=own",
]
FAMILIES = {"llava": 1e-4, "llava_next": 1e-4, "llava_onevision": 2e-3, "qwen2_vl": 1e-4, "qwen2_5_vl": 1e-4,
            "internvl": 1e-4, "glm4v": 1e-4}  # fmt: skip
TILES = 176  # tokens of a step; a prompt of tiles is split, and a batch of prompts is
CACHED = 32  # tokens of a block, the least that a prefix cache can give back
pytestmark = pytest.mark.filterwarnings("default::FutureWarning")  # see test_exact.py
made = cache(prompt)


def whole(folder: Path, also: list[str], **more: Any) -> LLM:
    """vLLM with what it has by default: chunked prefill and prefix caching."""
    settings = {"foveate": {"method": "none", "also": also, "way": "before"}}
    return engine(
        folder, [], additional_config=settings, enable_prefix_caching=True, enable_chunked_prefill=True,
        max_num_batched_tokens=TILES, **more,
    )  # fmt: skip


class Pair:
    """A family in both engines; transformers' answers are computed once."""

    def __init__(self, family: str, folder: Path) -> None:
        self.family = family
        self.close = FAMILIES[family]
        self.methods = EVERY if family == "llava" else FEW
        self.reference = Reference(family, folder)
        self.llm = whole(folder, self.methods)
        self.expected = cache(self.reference.answer)

    def prompts(self, method: str, first: int = 0, pictures: int = 1) -> list[Prompt]:
        return [made(self.family, first + seed, method, pictures) for seed in range(3)]

    def check(self, prompts: list[Prompt], **more: Any) -> list[Any]:
        found = in_steps(self.llm, prompts, [0, 0, 2, 2, 3, 3][: len(prompts)], **more)
        for one, answer in zip(prompts, found, strict=True):
            check(answer, self.expected(one), self.close)
        return found


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, saved: Path) -> Iterator[Pair]:
    family = str(request.param)
    both = Pair(family, tiny.save(family, saved / f"{family}-before"))
    yield both
    both.llm.llm_engine.engine_core.shutdown()
    del both.llm
    cleanup_dist_env_and_memory()


def test_every_method_in_a_batch(pair: Pair) -> None:
    plain = pair.check(pair.prompts("none"))
    for method in pair.methods:
        assert apart(pair.check(pair.prompts(method)), plain) > 10 * pair.close, method


def test_methods_mixed_and_text_only(pair: Pair) -> None:
    prompts = [made(pair.family, 20 + n, m) for n, m in enumerate(["none", *FEW])]
    pair.check([*prompts, Prompt("w5 w6 w7 w8", (), FEW[0])])


def test_prompts_are_shorter_and_their_prefixes_are_cached_by_method(pair: Pair) -> None:
    long = made(pair.family, 30, "none")
    lengths, given = {}, {}
    for _ in range(2):
        for method in ("none", *FEW):
            (output,) = pair.llm.generate(
                *request(Prompt(long.text, long.pictures, method)), use_tqdm=False
            )
            lengths[method] = len(output.prompt_token_ids)
            given[method] = output.num_cached_tokens
    assert lengths[FEW[0]] < lengths["none"]
    assert lengths[WEIGHS] < lengths[FEW[0]]
    for method, length in lengths.items():  # found in the second round, and right all the same
        assert given[method] == (length - 1) // CACHED * CACHED
        pair.check([Prompt(long.text, long.pictures, method)])


def test_preempted(pair: Pair) -> None:
    prompts = [made(pair.family, 40 + n, method) for n, method in enumerate([*FEW, "none"])]
    pair.check(prompts, preempt=4)


def test_several_images(pair: Pair) -> None:
    done = 0
    for method in FEW:
        for one in pair.prompts(method, first=50, pictures=2):
            try:
                request(one)
                pair.check([one])
                done += 1
            except VLLMValidationError as error:
                assert "shares its tokens out" in str(error) or "pictures touch" in str(error)
    assert done > 0


def test_limits_are_those_of_the_whole_prompt(pair: Pair) -> None:
    one = made(pair.family, 30, FEW[0])
    tokens = len(
        pair.llm.generate(*request(Prompt(one.text, one.pictures, "none")), use_tqdm=False)[
            0
        ].prompt_token_ids
    )
    (output,) = pair.llm.generate(*request(one, max_tokens=1000), use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 384 - tokens


def test_state_goes_with_its_request(pair: Pair) -> None:
    runner = pair.llm.llm_engine.model_executor.driver_worker.worker.model_runner
    pictures = runner._model_forward.__self__
    pair.check(pair.prompts(FEW[0], first=60))
    pair.check([Prompt("w5 w6", (), "none")])
    assert len(pictures.prompts) <= 1
    assert set(pictures.kept) <= set(runner.encoder_cache)


def test_compiled(saved: Path) -> None:
    folder = tiny.save("llava", saved / "llava-compiled")
    reference = Reference("llava", folder)
    llm = whole(folder, FEW, enforce_eager=False)
    for method in FEW:
        prompts = [made("llava", seed, method) for seed in range(3)]
        for one, answer in zip(prompts, in_steps(llm, prompts, [0, 1, 3]), strict=True):
            check(answer, reference.answer(one), 1e-4)
    llm.llm_engine.engine_core.shutdown()
    del llm
    cleanup_dist_env_and_memory()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fastv:layer=2", "deeper than 0"),
        ("prumerge", "does not say beforehand"),
        ("cdpruner", "by the picture alone"),
        ("st3", "deeper than 0"),
    ],
)
def test_methods_that_cannot_go_this_way(saved: Path, text: str, expected: str) -> None:
    folder = tiny.save("llava", saved / "llava-refused")
    with pytest.raises(ValueError, match=expected) as caught:
        whole(folder, [text])
    assert "\n" not in str(caught.value)


def test_requests_that_cannot_go_this_way(saved: Path) -> None:
    llm = whole(tiny.save("idefics3", saved / "idefics3-before"), [])
    one = made("idefics3", 0, FEW[0])
    with pytest.raises(VLLMValidationError, match="other tokens lie among"):
        llm.generate(*request(one), use_tqdm=False)
    with pytest.raises(VLLMValidationError, match="ends with a picture"):
        llm.generate(*request(Prompt("w5 <image>", one.pictures[:1], FEW[0])), use_tqdm=False)
    with pytest.raises(VLLMValidationError, match="layers 0 to 5"):
        llm.generate(*request(Prompt(one.text, one.pictures, "fastv:layer=9")), use_tqdm=False)
    llm.llm_engine.engine_core.shutdown()
