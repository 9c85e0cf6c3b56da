"""Flex attention against sdpa (eager where products are capped), mostly uncompiled, which gives the same numbers.

transformers compiles it at every use. `torch.compiler.set_stance("force_eager")` runs what is compiled as plain Python,
so no C++ compiler is needed; one test compiles.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
import transformers.integrations.flex_attention as flex_module
from torch import Tensor
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

import foveate
from foveate.artefacts.weighting import Weighting
from foveate.core.method import Method
from foveate.core.schedules import Cut
from foveate.core.scores import LastQuery
from foveate.doctor.selfcheck import self_check
from foveate.engine.anatomy import anatomy_of
from foveate.engine.attention.masks import SUPPORTED, for_backend, own_mask
from foveate.engine.checks import backends
from foveate.methods import fastv, random, tome, vtw
from foveate.tune.search.runner import Runner
from foveate.tune.train.dyrate.judge import likeliest
from foveate.tune.train.dyrate.rollout import roll_out
from models.families import model as family
from models.prompts import prompt, together
from models.talk import Talk
from models.tiny import IMAGE, VIDEO, Layout, batch, model
from oracles.cases import METHODS
from oracles.choosers import tiny_predictor
from oracles.layouts import TOLERANCE
from oracles.teaching import followed, some_answers

CLOSE = {"atol": 2e-4, "rtol": 1e-3}
DECAY = Method(LastQuery(), METHODS["decay"][0].method.schedule)
PLAIN = {
    "random": random(layer=1, keep=0.5),
    "fastv": fastv(layer=1, keep=0.25),
    "vtw": vtw(2),
    "cut": Method(LastQuery(), Cut(2, 5)),
    "decay": DECAY,
}
WEIGHED = {
    "once": random(layer=1, keep=0.4).weighted("nearest", "none"),
    "mean": fastv(layer=1, keep=0.3).weighted("mixed", "mean"),
    "merged": tome(keep=0.3, rounds=3).weighted("clusters", "own"),
    "every step": DECAY.weighted("cell", "none", strength=0.5),
    "every step, mean": DECAY.weighted("nearest", "mean"),
}
LIGHT = {
    "once": "none",
    "mean": "mean",
    "merged": "own",
    "every step": "none",
    "every step, mean": "mean",
}


class Flex:
    """What flex attention was called with."""

    def __init__(self) -> None:
        self.blocks: list[bool] = []  # whether a call had a `BlockMask`, and no table


@cache
def flexed(dtype: torch.dtype = torch.float32) -> Any:
    """The tiny LLaVA whose language model, and it alone, is on flex attention."""
    made = copy.deepcopy(model("llava", "sdpa", dtype))
    made.set_attn_implementation({"text_config": "flex_attention"})
    return made


@pytest.fixture
def flex(monkeypatch: pytest.MonkeyPatch) -> Iterator[Flex]:
    """Runs flex attention uncompiled, and counts its calls."""
    seen, inner = Flex(), flex_module.compile_friendly_flex_attention

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.blocks.append(kwargs["block_mask"] is not None)
        return inner(*args, **kwargs)

    monkeypatch.setattr(flex_module, "compile_friendly_flex_attention", spy)
    with torch.compiler.set_stance("force_eager"):
        yield seen


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("name", PLAIN)
def test_flex_attention_equals_sdpa_in_every_turn(name: str, samples: int, flex: Flex) -> None:
    wanted = Talk(samples).run(model("llava"), PLAIN[name])
    assert not flex.blocks and wanted.trace.mean_kept() < 1
    Talk(samples).run(flexed(), PLAIN[name]).check(wanted)
    assert set(flex.blocks) == {True, False}  # the model's own masks before a cut, tables after


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("name", WEIGHED)
def test_weights_under_flex_attention_equal_sdpa_in_every_turn(
    name: str, samples: int, flex: Flex
) -> None:
    made = flexed()
    wanted = Talk(samples).run(model("llava"), WEIGHED[name])
    found = Talk(samples).run(made, WEIGHED[name])
    found.check(wanted)
    assert flex.blocks
    light = Talk(samples).run(made, WEIGHED[name].weighted("none", LIGHT[name]))
    for mine, theirs in zip(found.logits, light.logits, strict=True):
        assert (mine - theirs).abs().max() > 20 * CLOSE["atol"]  # so weights matter, in each step


def generated(made: Any, inputs: dict[str, Tensor], method: Method, **options: Any) -> Tensor:
    """Logits of four greedy steps."""
    with foveate.apply(made, method) as trace:
        out = made.generate(
            **inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True,
            suppress_tokens=[IMAGE, VIDEO], **options,
        )  # fmt: skip
    assert trace.mean_kept() < 1
    return torch.stack(out.logits)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"use_cache": False}])
@pytest.mark.parametrize("method", [PLAIN["fastv"], WEIGHED["mean"]])
def test_beams_and_no_cache(method: Method, options: dict[str, Any], flex: Flex) -> None:
    inputs = batch("llava", Layout(((3, 0, 5), (2, 0, 2)))).inputs
    wanted = generated(model("llava"), inputs, method, **options)
    found = generated(flexed(), inputs, method, **options)
    torch.testing.assert_close(found, wanted, **CLOSE)
    assert flex.blocks


SPECIAL = {
    "gemma3": "sdpa",  # windows in some layers, images that see both ways
    "paligemma": "sdpa",  # the whole prompt sees both ways
    "paligemma2": "eager",  # products are capped, which sdpa does not do
    "cohere2_vision": "sdpa",  # windows in some layers
    "llava_next": "sdpa",  # windows in all layers
    "ministral3": "sdpa",  # queries that grow with their position
}


@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("method", [PLAIN["fastv"], WEIGHED["every step, mean"]])
def test_families_with_masks_of_their_own(name: str, method: Method, flex: Flex) -> None:
    """Their blocks are read and gathered; bias and cap come in the right order."""
    segments = ((3, "a", 5), (2, "a", 9))
    inputs = together([prompt(name, row, seed) for seed, row in enumerate(segments)])
    wanted = generated(family(name, SPECIAL[name]), inputs, method)
    assert not flex.blocks
    found = generated(family(name, "flex_attention"), inputs, method)
    torch.testing.assert_close(found, wanted, **CLOSE)
    assert set(flex.blocks) == {True, False}


@pytest.mark.parametrize("name", ["gemma3", "paligemma", "cohere2_vision"])
def test_blocks_are_read_as_tables_are(name: str, flex: Flex) -> None:
    """And the masks are more than causal, so that the test above could fail."""
    inputs = together([prompt(name, row, 0) for row in ((3, "a", 9), (2, "a", 2))])
    tables: list[list[Any]] = []
    for backend in ("sdpa", "flex_attention"):
        made, given = family(name, backend), []

        def note(module: Any, args: Any, kwargs: Any, into: list[Any] = given) -> None:
            into.append(own_mask(kwargs["attention_mask"], 0))

        hooks = [
            layer.register_forward_pre_hook(note, with_kwargs=True)
            for layer in anatomy_of(made).decoder.layers
        ]
        with torch.no_grad():
            made(**inputs)
        for hook in hooks:
            hook.remove()
        tables.append(given)
    real = inputs["attention_mask"].bool()
    rows = torch.arange(real.shape[1])
    causal = rows[:, None] >= rows
    special = False
    for table, blocks in zip(*tables, strict=True):
        # sdpa lets a row that sees nothing see all, for padding
        assert torch.equal(blocks.seen.expand(2, -1, -1)[real], table.seen.expand(2, -1, -1)[real])
        seen = table.seen.expand(2, -1, -1)[real]
        special |= bool((seen != (causal & real[:, None])[real]).any())
    assert special


def test_keeping_all_is_the_plain_model_to_the_bit(flex: Flex) -> None:
    made, inputs = flexed(), batch("llava", Layout(((3, 0, 5),))).inputs
    with torch.no_grad():
        plain = made(**inputs).logits
        for method in (random(layer=1, keep=1.0), random(layer=1, keep=1.0).weighted("nearest")):
            with foveate.apply(made, method):
                assert torch.equal(made(**inputs).logits, plain)
    assert all(flex.blocks)


def test_half_precision_keeps_the_bias_whole(flex: Flex) -> None:
    """It is added in float32, as the products are; sdpa adds it in the model's type."""
    columns, bias = torch.arange(4)[None], torch.tensor([[0.0, 1.1, 6.4, 0.0]])
    table = for_backend("flex_attention", columns, columns, None, torch.bfloat16, bias=bias)
    assert table.dtype == torch.float32 and torch.equal(table[0, 0, -1], bias[0])
    talk = Talk(3, torch.bfloat16)
    found = talk.run(flexed(torch.bfloat16), WEIGHED["once"])
    wanted = talk.run(model("llava", "sdpa", torch.bfloat16), WEIGHED["once"])
    for mine, theirs in zip(found.logits, wanted.logits, strict=True):
        torch.testing.assert_close(mine, theirs, atol=TOLERANCE[torch.bfloat16], rtol=0)
    assert not all(flex.blocks)


@pytest.mark.parametrize(
    ("name", "lacks"),
    [
        ("llava_onevision", ""),
        ("gemma3", "flash"),
        ("ministral3", "flash"),
        ("qwen2_5_vl", "flex"),
    ],
)
def test_the_doctor_names_the_backends_that_a_family_takes(name: str, lacks: str) -> None:
    anatomy = anatomy_of(family(name))
    found = backends(anatomy.adapter, anatomy.decoder)
    assert found == [given for given in SUPPORTED if not lacks or not given.startswith(lacks)]
    for given in {"sdpa", "eager", "flex_attention"} - set(found):
        with pytest.raises(ValueError, match="does not support"):
            copy.deepcopy(family(name)).set_attn_implementation({"text_config": given})


def test_what_does_not_go_with_flex_attention_is_refused() -> None:
    made = flexed()
    with pytest.raises(ValueError, match="dense masks, which flex_attention has not"):
        self_check(made, batch("llava", Layout(((3, 0, 5),))).inputs)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flex_attention_as_transformers_compiles_it(dtype: torch.dtype) -> None:
    """One sample only: torch 2.13 cannot compile the plain model's own masks of a padded batch for a CPU."""
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("flex attention is compiled on a CPU, and there is no C++ compiler here")
    torch._dynamo.reset()
    for method in (WEIGHED["once"], PLAIN["decay"]):
        wanted = Talk(1, dtype).run(model("llava", "sdpa", dtype), method)
        with torch._dynamo.config.patch(
            fail_on_recompile_limit_hit=True
        ):  # else it runs uncompiled
            found = Talk(1, dtype).run(flexed(dtype), method)
        for mine, theirs in zip(found.logits, wanted.logits, strict=True):
            torch.testing.assert_close(mine, theirs, atol=TOLERANCE[dtype], rtol=0)


def test_trials_and_training_under_flex_attention_equal_sdpa(flex: Flex) -> None:
    weighting, keep = Weighting("nearest", "mean"), (1.0, 0.7, 0.7, 0.2)
    inputs = batch("llava", Layout(((3, 0, 5), (2, 0, 2), (6, 0, 1)))).inputs
    found = []
    for made in (model("llava"), flexed()):
        given = followed(made, inputs, some_answers(3, 5))
        runner = Runner(made, LastQuery(), weighting=weighting)
        state = runner.reach(runner.start(given), keep[:2])
        with torch.no_grad():
            taught = roll_out(
                made, tiny_predictor(), LastQuery(), 2, given, likeliest, weighting=weighting
            )
        there = given.answered
        found.append((runner.to_end(state, keep)[there], taught.logits[there]))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, **CLOSE)
    assert set(flex.blocks) == {True, False}
