"""The way "before": short prompts, the whole of vLLM at work, and the answers of transformers + `foveate.apply`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
from speaking import Prompt, Reference, apart, check, in_steps, prompt, request, whole_vllm
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.exceptions import VLLMValidationError

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
FAMILIES = {
    "llava": 1e-4, "llava_next": 1e-4, "llava_onevision": 2e-3, "qwen2_vl": 1e-4, "qwen2_5_vl": 1e-4,
    "qwen3_vl": 1e-4, "internvl": 1e-4, "glm4v": 1e-4,
}  # fmt: skip
CACHED = 32  # tokens of a block, the least that a prefix cache can give back
pytestmark = pytest.mark.filterwarnings("default::FutureWarning")  # see test_exact.py
made = cache(prompt)


class Pair:
    """A family in both engines; transformers' answers are computed once."""

    def __init__(self, family: str, folder: Path) -> None:
        self.family = family
        self.close = FAMILIES[family]
        self.methods = EVERY if family == "llava" else FEW
        self.reference = Reference(family, folder)
        self.llm = whole_vllm(folder, self.methods)
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
    done, refused = 0, []
    for method in FEW:
        for one in pair.prompts(method, first=50, pictures=2):
            try:
                pair.check([one])
                done += 1
            except VLLMValidationError as error:
                refused.append(str(error))
    assert done > 0
    assert all("shares its tokens out" in reason for reason in refused), refused


def test_the_same_picture_twice(pair: Pair) -> None:
    words, (picture, *_) = (
        made(pair.family, 70, FEW[0], 2).text,
        made(pair.family, 70, FEW[0], 2).pictures,
    )
    pair.check([Prompt(words, (picture, picture), method) for method in (FEW[0], WEIGHS)])


def test_responses_say_how_many_tokens_were_kept(pair: Pair) -> None:
    for method in ("none", *FEW):
        one = made(pair.family, 1, method)
        (output,) = pair.llm.generate(*request(one), use_tqdm=False)
        said = (output.kv_transfer_params or {}).get("foveate")
        if method == "none":
            assert said is None
            continue
        pair.reference.answer(one)
        first = pair.reference.trace.passes[0]
        assert said["visual_tokens"] == int(first.total[0])
        assert said["kept_in_last_layer"] == said["kept_on_average"] == first.cuts[-1][1].item()


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
    """In a process of its own: here the tests check types at run time, which a compiler cannot follow."""
    script = Path(__file__).with_name("compiled.py")
    done = subprocess.run(
        [sys.executable, str(script), str(saved / "compiled")],
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    same = [line for line in done.stdout.splitlines() if line.startswith("same ")]
    assert len(same) == len(FEW), done.stderr[-2000:]


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
        whole_vllm(folder, [text])
    assert "\n" not in str(caught.value)


def test_requests_that_cannot_go_this_way(saved: Path) -> None:
    llm = whole_vllm(tiny.save("idefics3", saved / "idefics3-before"), [])
    one = made("idefics3", 0, FEW[0])
    with pytest.raises(VLLMValidationError, match="other tokens lie among"):
        llm.generate(*request(one), use_tqdm=False)
    with pytest.raises(VLLMValidationError, match="layers 0 to 5"):
        llm.generate(*request(Prompt(one.text, one.pictures, "fastv:layer=9")), use_tqdm=False)
    llm.llm_engine.engine_core.shutdown()
