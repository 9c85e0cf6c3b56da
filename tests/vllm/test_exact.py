"""Tokens and log-probabilities inside vLLM are those of transformers + `foveate.apply`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import tiny
from speaking import (
    Answer,
    Prompt,
    Reference,
    apart,
    check,
    engine,
    in_steps,
    prompt,
    request,
    shut_down,
    told,
)

from foveate.vllm.settings import drops_while_decoding, methods_of, tower_of, weighs
from vllm import LLM

WEIGHS = "divprune:keep=0.25,weigh=nearest,merge=mean"
DECIDES_LATER = ["st3:every=2,horizon=4", "dyrate:predictor=PREDICTOR"]  # while decoding
FEW = [
    "fastv:layer=2,keep=0.25",
    "divprune:keep=0.5",
    "pdrop:keep=0.5",
    "visionzip:keep=8",
    WEIGHS,
    *DECIDES_LATER,
]
EVERY = [
    *FEW, "pact", "fastv:layer=2,keep=0.25,weigh=nearest", "tome:weigh=clusters,merge=own",
    "pdrop:keep=0.5,weigh=cell,strength=0.5", "st3:every=2,horizon=4,weigh=nearest,merge=mean",
    "dyrate:predictor=PREDICTOR,weigh=nearest,merge=mean", "dyrate:predictor=PREDICTOR,deeper=0.2",
    "dyrate:predictor=PREDICTOR,protect=unseen", "fastv:layer=1,keep=0.7+st3:layer=3,every=1,horizon=3",
    "cdpruner", "dart", "downsample", "dymu", "fastv:layer=2,keep=0.3,within=image", "fitprune", "flowcut",
    "pact:layer=2,weigh=none", "prumerge", "prumerge_plus", "psigmoid", "random", "sparsevlm", "tome", "vispruner",
    "vscan1", "vscan1+vscan2:layer=3", "vtw:layer=3", "score=dart,schedule=pdrop:keep=0.5",
    "divprune:keep=0.25,merge=mean", "fastv:layer=1,keep=0", "fastv:layer=5,keep=0.1", "fastv:layer=0,ranking=diverse",
]  # fmt: skip
KEEPS_ALL = (
    "dymu",
    "prumerge",
    "fastv:layer=5,keep=0.1",
    "fitprune",
)  # hardly move the first token of some prompts
FAMILIES = {  # tolerance; plain vLLM is as far from plain transformers
    "llava": 1e-4, "llava_next": 1e-4, "llava_onevision": 2e-3, "qwen2_vl": 1e-4, "qwen2_5_vl": 1e-4, "qwen3_vl": 1e-4,
    "internvl": 1e-4, "idefics3": 1e-4, "smolvlm": 1e-4, "mistral3": 1e-4, "glm4v": 1e-4,
}  # fmt: skip
FAR = 10  # tolerances: what is as far apart is not the same
WITHOUT_TOWER = ("mistral3",)  # Pixtral's attention is not read
WITHOUT_WEIGHTS = ("internvl",)  # so that heads of the model's own width are tested too
pytestmark = pytest.mark.filterwarnings(
    "default::FutureWarning"
)  # vLLM looks at deprecated names of torch


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Pair:
    """A family in both engines; transformers' answers are computed once."""

    def __init__(self, family: str, folder: Path) -> None:
        self.family = family
        self.close = FAMILIES[family]
        predictor = str(tiny.predictor(folder.with_name("predictor")))
        found = (method.replace("PREDICTOR", predictor) for method in EVERY)
        if family in WITHOUT_TOWER:
            found = (method for method in found if not tower_of(methods_of(method)))
        if family in WITHOUT_WEIGHTS:
            found = (method for method in found if not weighs(method))
        self.every = list(found)
        self.few = [m for m in self.every if m.replace(predictor, "PREDICTOR") in FEW]
        self.later = [m for m in self.few if drops_while_decoding(m)]
        self.reference = Reference(family, folder)
        self.llm: LLM = engine(folder, [*self.every, *map(early, self.later)])
        self.expected = cache(self.reference.answer)

    @property
    def methods(self) -> list[str]:
        return self.every if self.family == "llava" else self.few

    def prompts(self, method: str, count: int = 3, pictures: int = 1) -> list[Prompt]:
        return [made(self.family, seed, method, pictures) for seed in range(count)]

    def check(self, prompts: list[Prompt], found: list[Answer]) -> None:
        for one, answer in zip(prompts, found, strict=True):
            check(answer, self.expected(one), self.close)

    def together(self, prompts: list[Prompt]) -> list[Answer]:
        return in_steps(self.llm, prompts, [0] * len(prompts))


made = cache(prompt)


def early(method: str) -> str:
    """The method without its decisions while decoding."""
    later = "every=2"
    return method.replace(later, "every=64") if later in method else f"{method},decode=false"


@pytest.fixture(scope="module")
def pair(family: str, saved: Path) -> Iterator[Pair]:
    folder = saved / family
    both = Pair(family, tiny.save(family, folder))
    yield both
    shut_down(both.llm)


def test_keeping_all_is_plain(pair: Pair) -> None:
    prompts = pair.prompts("none")
    plain = pair.together(prompts)
    pair.check(prompts, plain)
    kept = pair.together([Prompt(p.text, p.pictures, "fastv:layer=2,keep=1.0") for p in prompts])
    assert kept == plain


def test_every_method_in_a_batch(pair: Pair) -> None:
    plain = pair.together(pair.prompts("none"))
    for method in pair.methods:
        prompts = pair.prompts(method)
        found = pair.together(prompts)
        pair.check(prompts, found)
        if method not in KEEPS_ALL:
            assert apart(found, plain) > FAR * pair.close, method


def test_decisions_while_decoding_change_something(pair: Pair) -> None:
    for method in pair.later:
        if pair.family == "llava_onevision" and method.startswith("dyrate"):
            continue  # the tiny predictor, one for all families, lets nothing go there
        late = pair.together(pair.prompts(method))
        other = pair.together(pair.prompts(early(method)))
        assert [a[1][0] for a in late] == pytest.approx([a[1][0] for a in other], abs=pair.close)
        assert any(
            a[0] != b[0]
            or max(abs(x - y) for x, y in zip(a[1], b[1], strict=True)) > FAR * pair.close
            for a, b in zip(late, other, strict=True)
        ), method


def test_alone(pair: Pair) -> None:
    for method in (pair.few[0], pair.few[-1]):
        for one in pair.prompts(method):
            pair.check([one], pair.together([one]))


def test_methods_mixed_and_text_only(pair: Pair) -> None:
    prompts = [made(pair.family, seed, method) for seed, method in enumerate(["none", *pair.few])]
    prompts.append(Prompt("w5 w6 w7 w8", (), FEW[0]))
    pair.check(prompts, pair.together(prompts))


def test_arrivals_at_different_times(pair: Pair) -> None:
    prompts = [made(pair.family, seed, method) for seed, method in enumerate([*pair.few, "none"])]
    pair.check(prompts, in_steps(pair.llm, prompts, [0, 1, 3, 3, 4, 4, 5, 6][: len(prompts)]))


def test_several_images(pair: Pair) -> None:
    prompts = [prompt for method in pair.few for prompt in pair.prompts(method, 2, pictures=2)]
    pair.check(prompts, pair.together(prompts))


def test_preempted(pair: Pair) -> None:
    prompts = [made(pair.family, seed, method) for seed, method in enumerate([*pair.few, "none"])]
    pair.check(
        prompts, in_steps(pair.llm, prompts, [0, 0, 1, 1, 0, 0, 0, 1][: len(prompts)], preempt=4)
    )


def test_several_answers_to_one_prompt(pair: Pair) -> None:
    one = made(pair.family, 1, FEW[0])
    given, params = request(one, n=2, temperature=1.0, top_k=1)
    for output in pair.llm.generate([given], params, use_tqdm=False)[0].outputs:
        check(told(output), pair.expected(one), pair.close)


def test_responses_say_how_many_tokens_were_kept(pair: Pair) -> None:
    for method in ("none", *pair.few):
        one = made(pair.family, 2, method)
        (output,) = pair.llm.generate(*request(one), use_tqdm=False)
        said = (output.kv_transfer_params or {}).get("foveate")
        if method == "none":
            assert said is None
            continue
        pair.reference.answer(one)
        rows = pair.reference.trace.kept
        last = [row for row in rows if row.step == rows[-1].step]
        assert said["visual_tokens"] == int(pair.reference.trace.passes[0].total[0])
        assert said["kept_in_last_layer"] == last[-1].kept < said["visual_tokens"]
        mean = sum(row.kept for row in last) / len(last)
        assert said["kept_on_average"] == pytest.approx(mean, abs=0.01)


def test_state_goes_with_its_request(pair: Pair) -> None:
    live = (
        pair.llm.llm_engine.model_executor.driver_worker.worker.model_runner._model_forward.__self__
    )
    prompts = pair.prompts(FEW[0], 2)
    core = pair.llm.llm_engine
    core.add_request("aborted", *request(prompts[0]))
    core.step()
    assert len(live.requests) >= 1
    core.abort_request(["aborted"])
    pair.check(prompts, pair.together(prompts))
    pair.together([Prompt("w5 w6", (), "none")])
    assert len(live.requests) <= 1  # the last request's end reaches the worker with the next step
    assert live.forward is None
