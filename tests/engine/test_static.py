"""Static caches and compiled decode steps under `apply`.

The dynamic cache is the judge here; `tests/oracles` judges it by the masked model.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from transformers import CompileConfig, StaticCache

import foveate
from foveate.core.method import Method
from foveate.engine.attention import perlayer
from foveate.engine.attention.biased import LentConfig
from foveate.engine.cache.static import SIZES, FrozenLayer, Sight
from foveate.methods import as_methods
from models import families, tiny
from models.prompts import prompt, together
from models.tiny import CACHE, Layout, batch, cache_in, held
from oracles.cases import CASES

CLOSE = {"atol": 2e-4, "rtol": 1e-3}
FAMILIES = ("llava", "qwen2_5_vl", "internvl")
PICTURES = {
    "one": [(3, "a", 5)],
    "ragged": [(3, "a", 5, "b", 2), (9, "a", 1)],
}
METHODS: dict[str, Any] = {
    "fastv": "fastv:layer=1,keep=0.5",
    "divprune": "divprune:keep=0.25",
    "stages": "pdrop:keep=0.6",
    "schedule": CASES["schedule"].method,
    "weighed": "divprune:keep=0.25,weigh=nearest,merge=mean",
    "random": "random:layer=1,keep=0.4",
    "none at the end": "vtw:layer=2",
    "two": (CASES["fastv"].method, CASES["vtw"].method),
}
WORDS = {"max_new_tokens": 5, "do_sample": False}
TOLD = {"return_dict_in_generate": True, "output_logits": True}


def methods(name: str) -> tuple[Method, ...]:
    chosen = METHODS[name]
    return as_methods(chosen if isinstance(chosen, tuple) else (chosen,))


def model(family: str, backend: str = "sdpa") -> Any:
    return tiny.model("llava", backend) if family == "llava" else families.model(family, backend)


def given(family: str, layout: str, seed: int = 1) -> dict[str, Any]:
    if family == "llava":
        parts = [tuple(0 if isinstance(p, str) else p for p in row) for row in PICTURES[layout]]
        return batch("llava", Layout(tuple(parts), seed=seed)).inputs
    return together([prompt(family, row, seed + i) for i, row in enumerate(PICTURES[layout])])


def compiling(backend: str, **more: Any) -> CompileConfig:
    made = CompileConfig(backend=backend, mode=None, fullgraph=True, **more)
    made._compile_all_devices = True
    return made


def check_same(ours: Any, theirs: Any) -> None:
    assert torch.equal(ours.sequences, theirs.sequences)
    for one, other in zip(ours.logits, theirs.logits, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def far(ours: Any, theirs: Any) -> float:
    return max((a - b).abs().max().item() for a, b in zip(ours.logits, theirs.logits, strict=True))


@pytest.mark.parametrize("layout", PICTURES)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_static_equals_dynamic(family: str, name: str, layout: str) -> None:
    made, data = model(family), given(family, layout)
    plain = made.generate(**data, **WORDS, **TOLD)
    with foveate.apply(made, *methods(name)) as dynamic:
        judge = made.generate(**data, **WORDS, **TOLD)
    with foveate.apply(made, *methods(name)) as trace:
        ours = made.generate(**data, **WORDS, **TOLD, cache_implementation="static")
        layers = cache_in(ours).layers
        assert all(isinstance(layer, FrozenLayer) for layer in layers)
        sizes = [layer.keys.shape[2] for layer in layers]
        if (family, layout) == ("llava", "one"):  # others' pictures have too few tokens
            assert min(sizes) < layers[0].most  # what was dropped takes no room
    check_same(ours, judge)
    assert far(judge, plain) > 1e-3, "nothing was pruned"
    assert trace.kept == dynamic.kept


def test_eager_attention_too() -> None:
    made, data = model("llava", "eager"), given("llava", "ragged")
    for name in ("fastv", "weighed"):
        with foveate.apply(made, *methods(name)):
            judge = made.generate(**data, **WORDS, **TOLD)
            check_same(made.generate(**data, **WORDS, **TOLD, cache_implementation="static"), judge)


def talk(made: Any, cache: Any, name: str) -> list[Tensor]:
    """Two turns in a bare loop, with pictures in both, on one cache."""
    turns = [
        batch("llava", Layout(((3, 0, 5), (2, 0, 2)), seed=s)).inputs["input_ids"] for s in (1, 2)
    ]
    pixels = [
        batch("llava", Layout(((3, 0, 5), (2, 0, 2)), seed=s)).inputs["pixel_values"]
        for s in (1, 2)
    ]
    masks = [
        batch("llava", Layout(((3, 0, 5), (2, 0, 2)), seed=s)).inputs["attention_mask"]
        for s in (1, 2)
    ]
    logits, mask = [], masks[0][:, :0]
    with torch.no_grad(), foveate.apply(made, *methods(name)):
        for ids, image, real in zip(turns, pixels, masks, strict=True):
            mask = torch.cat([mask, real], 1)
            out = made(input_ids=ids, pixel_values=image, attention_mask=mask, **held(cache))
            logits.append(out.logits[:, -1:])
            for word in (7, 8, 9):
                mask = torch.cat([mask, mask[:, :1] | 1], 1)
                step = made(input_ids=torch.full((2, 1), word), attention_mask=mask, **held(cache))
                logits.append(step.logits)
    return logits


@pytest.mark.parametrize("name", ["fastv", "weighed", "stages"])
def test_a_second_turn_goes_on_from_a_static_cache(name: str) -> None:
    made = model("llava")
    ours = talk(made, StaticCache(config=made.config, max_cache_len=90), name)
    for one, other in zip(ours, talk(made, foveate.KeptCache(made.config), name), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_generate_goes_on_from_a_static_cache() -> None:
    made, first = model("llava"), given("llava", "one")
    second = batch("llava", Layout(((2, 0, 4),), seed=7)).inputs
    found = []
    for cache in (
        StaticCache(config=made.config, max_cache_len=80),
        foveate.KeptCache(made.config),
    ):
        with foveate.apply(made, *methods("fastv")):
            out = made.generate(**first, **WORDS, **{CACHE: cache})
            ids = torch.cat([out, second["input_ids"]], 1)
            more = {"pixel_values": second["pixel_values"], "attention_mask": torch.ones_like(ids)}
            found.append(made.generate(input_ids=ids, **more, **WORDS, **TOLD, **{CACHE: cache}))
    check_same(*found)


def test_beams() -> None:
    made = model("llava")
    for name in ("fastv", "random", "weighed"):
        for layout in PICTURES:
            data, beams = given("llava", layout), {**WORDS, "num_beams": 3}
            with foveate.apply(made, *methods(name)):
                judge = made.generate(**data, **beams)
                ours = made.generate(**data, **beams, cache_implementation="static")
            assert torch.equal(judge, ours)


def test_a_cache_can_be_emptied_and_cropped() -> None:
    made, data = model("llava"), given("llava", "one")
    cache = StaticCache(config=made.config, max_cache_len=64)
    word = torch.full((1, 1), 7)
    with torch.no_grad(), foveate.apply(made, *methods("fastv")):
        made(**data, **held(cache))
        with pytest.raises(NotImplementedError, match="only 0 came after"):
            cache.crop(-1)
        once = made(input_ids=word, **held(cache)).logits
        cache.crop(-1)
        torch.testing.assert_close(made(input_ids=word, **held(cache)).logits, once)
        cache.reset()
        made(**data, **held(cache))
        torch.testing.assert_close(made(input_ids=word, **held(cache)).logits, once)


def hooks(made: Any) -> list[int]:
    return [len(part._forward_pre_hooks) + len(part._forward_hooks) for part in made.modules()]


def test_afterwards_the_model_is_as_before() -> None:
    made, data = copy.deepcopy(model("llava")), given("llava", "one")
    config = made.model.language_model.layers[0].self_attn.config
    plain = made.generate(**data, **WORDS, **TOLD, cache_implementation="static")
    before = {key: value for key, value in vars(made).items() if key != "_modules"}
    hung = hooks(made)
    with foveate.apply(made, *methods("fastv")):
        out = made.generate(
            **data, **{**WORDS, "max_new_tokens": 9}, **TOLD, cache_implementation="static"
        )
    assert {key: value for key, value in vars(made).items() if key != "_modules"} == before
    for layer in made.model.language_model.layers:
        assert layer.self_attn.config is config
    assert hooks(made) == hung
    again = made.generate(**data, **WORDS, **TOLD, cache_implementation="static")
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, again.logits, strict=True))
    with pytest.raises(RuntimeError, match=r"filled under foveate\.apply"):
        made(input_ids=torch.full((1, 1), 7), **held(cache_in(out)))


def test_an_interrupted_step_locks_nobody_out() -> None:
    made, data = model("llava"), given("llava", "one")
    cache = StaticCache(config=made.config, max_cache_len=64)
    with torch.no_grad(), foveate.apply(made, *methods("fastv")):
        made(**data, **held(cache))
        with pytest.raises(IndexError):
            made(input_ids=torch.full((1, 1), 1000), **held(cache))  # no such word
        made(input_ids=torch.full((1, 1), 7), **held(cache))
        made(**data, use_cache=True)


def test_what_cannot_be_right_is_refused() -> None:
    made, data = model("llava"), given("llava", "one")
    static = {**WORDS, "cache_implementation": "static"}
    with (
        foveate.apply(made, CASES["dyrate"].method),
        pytest.raises(ValueError, match="decode=false"),
    ):
        made.generate(**data, **static)
    with foveate.apply(made, watch=lambda view: None), pytest.raises(ValueError, match="watch="):
        made.generate(**data, **static)
    with foveate.apply(made, threads="wait"), pytest.raises(ValueError, match="take turns"):
        made.generate(**data, **static)
    with foveate.apply(made, *methods("fastv")):
        with pytest.raises(ValueError, match="prompt brings it to"):
            made(**data, **held(StaticCache(config=made.config, max_cache_len=10)))
        cache = StaticCache(config=made.config, max_cache_len=64)
        made(**data, **held(cache))
        made(input_ids=torch.full((1, 1), 7), **held(cache))
        with pytest.raises(RuntimeError, match="call the whole model"):
            made.model(**data)
        made(**data)
        with pytest.raises(ValueError, match="call the whole model"):
            made.model(input_ids=torch.full((1, 1), 7), **held(cache))
    gemma = families.model("gemma3", "sdpa")
    windows = together([prompt("gemma3", (3, "a", 5), 1)])
    with foveate.apply(gemma, *methods("fastv")), pytest.raises(TypeError, match="SlidingWindow"):
        gemma.generate(**windows, **static)


def graphs() -> tuple[int, int]:
    """Graphs so far, and graph breaks."""
    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


@pytest.fixture
def untyped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the tests' own type checks off what a compiled step runs through, for nothing can trace them."""
    for kind in (FrozenLayer, Sight, LentConfig):
        for name, function in vars(kind).items():
            if inspect.isfunction(function):
                monkeypatch.setattr(kind, name, inspect.unwrap(function))
    monkeypatch.setattr(perlayer, "attend_seen", inspect.unwrap(perlayer.attend_seen))


def sizes_of(family: str, number: int) -> dict[str, Any]:
    parts = (3 * number % 11 + 1, *("a", 2) * (1 + number % 3))
    if family != "llava":
        return together([prompt(family, parts, number)])
    return batch("llava", Layout((tuple(0 if p == "a" else p for p in parts),))).inputs


def compiled_equals_dynamic(family: str, name: str, backend: str, prompts: int, **more: Any) -> int:
    """How many graphs so many prompts of different sizes take; each answer is compared."""
    made = copy.deepcopy(model(family))
    torch._dynamo.reset()
    counters.clear()
    for number in range(1, prompts + 1):
        data = sizes_of(family, number)
        with foveate.apply(made, *methods(name)):  # an `apply` of its own for each
            judge = made.generate(**data, **WORDS, **TOLD)
            ours = made.generate(
                **data, **WORDS, **TOLD, cache_implementation="static",
                compile_config=compiling(backend, **more),
            )  # fmt: skip
        check_same(ours, judge)
        assert not [name for name in vars(made) if "compil" in name]
    found, breaks = graphs()
    assert breaks == 0
    return found


@pytest.mark.usefixtures("untyped")
def test_ten_prompts_of_different_sizes_take_two_graphs() -> None:
    """One for the first size, and one for all; further `apply`s take none.

    Dynamo's own backend runs the graph as it is, so that no compiler is needed.
    """
    assert 1 <= compiled_equals_dynamic("llava", "fastv", "eager", 10) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fastv", "stages", "weighed"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("untyped")
def test_compiled_equals_dynamic_on_every_family(family: str, name: str) -> None:
    assert 1 <= compiled_equals_dynamic(family, name, "aot_eager", 10) <= 4


@pytest.mark.slow
@pytest.mark.usefixtures("untyped")
def test_fixed_shapes_have_a_bounded_number_of_graphs() -> None:
    """`dynamic=False`, as CUDA graphs want it: a graph for each set of sizes, and these are few."""
    found = compiled_equals_dynamic("llava", "fastv", "eager", 8, dynamic=False)
    assert 1 <= found <= 2 * SIZES


@pytest.mark.slow
@pytest.mark.usefixtures("untyped")
def test_inductor() -> None:
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("inductor needs a C++ compiler, and there is none")
    assert 1 <= compiled_equals_dynamic("llava", "weighed", "inductor", 3) <= 3
