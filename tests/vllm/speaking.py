"""The same prompts through vLLM's engine and through transformers + `foveate.apply`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
import transformers as tf
from PIL import Image
from vllm.distributed import cleanup_dist_env_and_memory

import foveate
from foveate.methods import parse
from vllm import LLM, SamplingParams

STEPS = 6
LONGEST = 384  # tokens of a sequence
Answer = tuple[list[int], list[float]]  # tokens, and the log-probability of each


@dataclass(frozen=True, eq=False)
class Prompt:
    """Words and pictures of one request, and the method that it chooses."""

    text: str
    pictures: tuple[Image.Image, ...]
    method: str


def prompt(family: str, seed: int, method: str, pictures: int = 1) -> Prompt:
    """A prompt of random words around so many random pictures."""
    made = tiny.FAMILIES[family]
    random = np.random.default_rng(seed)

    def words(count: int) -> str:
        return " ".join(f"w{int(i)}" for i in random.integers(5, tiny.WORDS, count))

    text, shown = words(2), []
    for number in range(pictures):
        width, height = made.sides[(seed + number) % len(made.sides)]
        shown.append(Image.fromarray(random.integers(0, 255, (height, width, 3), dtype=np.uint8)))
        text += f" {made.mark} {words(int(random.integers(2, 9)))}"
    return Prompt(text, tuple(shown), method)


def engine(folder: Path, also: list[str], **more: Any) -> LLM:
    """vLLM with Foveate, which prunes what asks for it."""
    given = {
        "dtype": "float32", "max_model_len": LONGEST, "max_num_batched_tokens": 2048, "block_size": 32,
        "enforce_eager": True, "enable_prefix_caching": False, "enable_chunked_prefill": False,
        "limit_mm_per_prompt": {"image": 2, "video": 0}, "gpu_memory_utilization": 0.3,
        "additional_config": {"foveate": {"method": "none", "also": also}}, **more,
    }  # fmt: skip
    return LLM(str(folder), **given)


def shut_down(llm: LLM) -> None:
    """Ends an engine, so that another can start in this process."""
    llm.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()


def whole_vllm(folder: Path, also: list[str], **more: Any) -> LLM:
    """vLLM with what it has by default, chunked prefill and prefix caching, and Foveate before its decoder.

    Its steps are so short that prompts of tiles are split.
    """
    settings = {"foveate": {"method": "none", "also": also, "way": "before"}}
    return engine(
        folder, [], additional_config=settings, enable_prefix_caching=True, enable_chunked_prefill=True,
        max_num_batched_tokens=176, **more,
    )  # fmt: skip


def request(one: Prompt, **more: Any) -> tuple[dict[str, Any], SamplingParams]:
    """What vLLM is given for a prompt."""
    chosen = {"foveate": one.method}
    params = SamplingParams(
        **{
            "temperature": 0,
            "max_tokens": STEPS,
            "ignore_eos": True,
            "logprobs": 0,
            "extra_args": chosen,
            **more,
        }
    )
    given: dict[str, Any] = {"prompt": one.text}
    if one.pictures:
        given["multi_modal_data"] = {"image": list(one.pictures)}
    return given, params


def told(output: Any) -> Answer:
    """Tokens and log-probabilities in one output of vLLM's."""
    tokens = list(output.token_ids)
    return tokens, [
        step[token].logprob for step, token in zip(output.logprobs, tokens, strict=True)
    ]


def in_steps(
    llm: LLM, prompts: list[Prompt], arrivals: list[int], preempt: int | None = None
) -> list[Answer]:
    """Answers of requests that arrive at these engine steps; all are preempted before step `preempt`."""
    core, done, step = llm.llm_engine, {}, 0
    while len(done) < len(prompts):
        for number, (one, arrival) in enumerate(zip(prompts, arrivals, strict=True)):
            if arrival == step:
                core.add_request(f"r{number}-{id(prompts)}", *request(one))
        if step == preempt:
            core.reset_prefix_cache(reset_running_requests=True)
        for output in core.step():
            if output.finished:
                done[int(output.request_id.split("-")[0][1:])] = told(output.outputs[0])
        step += 1
    return [done[number] for number in range(len(prompts))]


class Reference:
    """transformers on the same weights, with `foveate.apply`."""

    def __init__(self, family: str, folder: Path) -> None:
        self.model = tiny.build(family)
        self.processor = tf.AutoProcessor.from_pretrained(folder)

    @torch.no_grad()
    def answer(self, one: Prompt) -> Answer:
        """Greedy tokens and their log-probabilities."""
        given = self.processor(
            text=one.text, images=list(one.pictures) or None, return_tensors="pt"
        )
        methods = [] if one.method == "none" else parse(one.method)
        with foveate.apply(self.model, *methods) as self.trace:
            said = self.model.generate(
                **given, do_sample=False, max_new_tokens=STEPS, min_new_tokens=STEPS, eos_token_id=None,
                return_dict_in_generate=True, output_scores=True,
            )  # fmt: skip
        tokens = said.sequences[0, given["input_ids"].shape[1] :].tolist()
        scores = [
            s[0].log_softmax(-1)[token].item() for s, token in zip(said.scores, tokens, strict=True)
        ]
        return tokens, scores


def check(found: Answer, expected: Answer, close: float) -> None:
    """That two answers are the same, to `close` in log-probability."""
    assert found[0] == expected[0]
    np.testing.assert_allclose(found[1], expected[1], atol=close, rtol=0)


def apart(some: list[Answer], others: list[Answer]) -> float:
    """The largest difference between log-probabilities of first tokens, where these are the same, else 1."""
    return max(
        abs(a[1][0] - b[1][0]) if a[0][0] == b[0][0] else 1.0
        for a, b in zip(some, others, strict=True)
    )
