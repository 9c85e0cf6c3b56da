"""transformers' own flash path around kernels in Python; no GPU kernel is run here."""

from __future__ import annotations

import copy
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers.modeling_flash_attention_utils as flash_utils
from torch import Tensor

import foveate
from foveate.artefacts.weighting import UNWEIGHED, Weighting
from foveate.core.method import Method
from foveate.core.schedules import Cut
from foveate.core.scores import LastQuery
from foveate.engine.attention.biased import attend_biased
from foveate.engine.attention.flash import why_not, widened
from foveate.engine.trace import Trace
from foveate.methods import fastv, random, tome, vtw
from foveate.tune.search.runner import Runner
from foveate.tune.train.dyrate.judge import likeliest
from foveate.tune.train.dyrate.rollout import roll_out
from models.families import model as family
from models.prompts import prompt, together
from models.talk import Talk
from models.tiny import IMAGE, NEWEST, VIDEO, Layout, batch, model
from oracles.cases import METHODS
from oracles.choosers import tiny_predictor
from oracles.teaching import followed, some_answers

CLOSE = {"atol": 2e-4, "rtol": 1e-3}


class Flash:
    """Flash attention's two kernels, in Python: what they compute, not how, and what they ask of their arguments."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.widths: list[int] = []  # of heads, a call each

    def check(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        """The kernels take heads of a multiple of 8 whose entries lie side by side, as wide for values as for keys."""
        width = q.shape[-1]
        assert k.shape[-1] == width and v.shape[-1] == width and width % 8 == 0 and width <= 256
        assert all(part.stride(-1) == 1 for part in (q, k, v))
        self.widths.append(width)

    @staticmethod
    def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
        k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
        products = torch.einsum("qhd,khd->hqk", q, k) * scale
        if causal and len(q) > 1:
            own = torch.arange(len(q))[:, None] + len(k) - len(q)
            products = products.masked_fill(torch.arange(len(k))[None] > own, -torch.inf)
        return torch.einsum("hqk,khd->qhd", products.softmax(-1), v)

    def dense(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        softmax_scale: float = 1.0,
        causal: bool = False,
        **_: Any,
    ) -> Tensor:
        self.called.append("dense")
        self.check(q, k, v)
        rows = zip(q, k, v, strict=True)
        return torch.stack([self.attend(a, b, c, causal, softmax_scale) for a, b, c in rows])

    def ragged(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
        softmax_scale: float = 1.0, causal: bool = False, **_: Any,
    ) -> Tensor:  # fmt: skip
        self.called.append("ragged")
        self.check(q, k, v)
        out = torch.zeros_like(q)
        for a, b, c, d in zip(
            cu_seqlens_q, cu_seqlens_q[1:], cu_seqlens_k, cu_seqlens_k[1:], strict=False
        ):
            if b > a:
                out[a:b] = self.attend(q[a:b], k[c:d], v[c:d], causal, softmax_scale)
        return out


def emulated(made: Any, monkeypatch: pytest.MonkeyPatch, which: int = 2) -> Flash:
    """Puts the decoder, and it alone, on flash attention 2 or 3."""
    flash = Flash()
    kernels = (flash.dense, flash.ragged, None, flash_utils._pad_input, flash_utils._unpad_input)
    process = flash_utils._lazy_define_process_function(flash.dense)
    loaded = (kernels, (process, None) if NEWEST else process)
    monkeypatch.setattr(flash_utils, "lazy_import_flash_attention", lambda *_, **__: loaded)
    config = made.model.language_model.config
    monkeypatch.setattr(config, "_attn_implementation_internal", f"flash_attention_{which}")
    return flash


DECAY = Method(LastQuery(), METHODS["decay"][0].method.schedule)
WEIGHED = {
    "once": random(layer=1, keep=0.4).weighted("nearest", "none"),
    "mean": fastv(layer=1, keep=0.3).weighted("mixed", "mean"),
    "merged": tome(keep=0.3, rounds=3).weighted("clusters", "own"),
    "every step": DECAY.weighted("cell", "none", strength=0.5),
    "every step, mean": DECAY.weighted("nearest", "mean"),
    "uniform": DECAY.weighted("uniform", "none"),
}


@pytest.mark.parametrize(
    "method",
    [random(layer=1, keep=0.5), fastv(layer=1, keep=0.25), vtw(2), Method(LastQuery(), Cut(2, 5))],
)
@pytest.mark.parametrize("samples", [1, 2])
def test_emulated_flash_attention_equals_sdpa_in_every_turn(
    method: Method, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Talk(samples).run(model("llava"), method)
    flash = emulated(model("llava"), monkeypatch)
    found = Talk(samples).run(model("llava"), method)
    assert flash.called and set(flash.widths) == {8}
    found.check(wanted)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("which", [2, 3])
@pytest.mark.parametrize("name", WEIGHED)
def test_weights_under_emulated_flash_attention_equal_sdpa_in_every_turn(
    name: str, which: int, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, made = WEIGHED[name], model("llava")
    wanted = Talk(samples).run(made, method)
    flash = emulated(made, monkeypatch, which)
    found = Talk(samples).run(made, method)
    found.check(wanted)
    assert wanted.trace.mean_kept() < 1
    cut = 0 if name == "merged" else 1  # layers before the cut run the plain kernel
    assert set(flash.widths) == ({8, 16} if cut else {16})
    assert ("ragged" in flash.called) == (samples > 1)
    light = Talk(samples).run(made, method.weighted("none", _merge(name)))
    for mine, theirs in zip(found.logits, light.logits, strict=True):
        assert (mine - theirs).abs().max() > 20 * CLOSE["atol"]  # so weights matter, in each step


def _merge(name: str) -> Any:
    return "mean" if "mean" in name else "own" if name == "merged" else "none"


@pytest.mark.parametrize("samples", [1, 3])
def test_a_turn_without_methods_goes_on_with_the_weights_of_the_one_before(
    samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, method = model("llava"), WEIGHED["mean"]
    wanted = Talk(samples).run(made, method, later=())
    found = Talk(samples).run(made, method, later=(), between=lambda: emulated(made, monkeypatch))
    found.check(wanted)
    light = Talk(samples).run(made, method.weighted("none", "mean"), later=())
    assert (found.logits[-1] - light.logits[-1]).abs().max() > 20 * CLOSE["atol"]


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize(
    "method", [random(layer=0, keep=0.5), METHODS["decay"][0].method, WEIGHED["every step, mean"]]
)
def test_emulated_flash_attention_with_positions_in_time_height_and_width(
    method: Method, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M-RoPE: positions that stand still within a picture must not be taken for packed sequences."""
    made = family("qwen2_5_vl")
    segments = ((3, "a", 5), (2, "b", 2, "a", 1))[:samples]
    inputs = together([prompt("qwen2_5_vl", row, seed) for seed, row in enumerate(segments)])

    def answer(method: Method) -> Tensor:
        logits, trace = generated(made, inputs, method, suppress_tokens=[IMAGE, VIDEO])
        assert trace.mean_kept() < 1
        return logits

    wanted = answer(method)
    flash = emulated(made, monkeypatch)
    torch.testing.assert_close(answer(method), wanted, **CLOSE)
    assert ("ragged" in flash.called) == (
        samples == 2
    )  # once padding has left the caches, decode steps are dense
    if method.weigh is not None:
        assert len(set(flash.widths)) == 2
        light = answer(method.weighted("none", "mean"))
        assert (light - wanted).abs().max() > 20 * CLOSE["atol"]


def generated(
    made: Any, inputs: dict[str, Tensor], method: Method, **options: Any
) -> tuple[Tensor, Trace]:
    """Logits of four greedy steps."""
    with foveate.apply(made, method) as trace:
        out = made.generate(
            **inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True,
            **options,
        )  # fmt: skip
    return torch.stack(out.logits), trace


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"use_cache": False}])
def test_weights_follow_beams_and_come_without_a_cache(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, inputs = model("llava"), batch("llava", Layout(((3, 0, 5), (2, 0, 2)))).inputs
    wanted, _ = generated(made, inputs, WEIGHED["mean"], **options)
    light, _ = generated(made, inputs, WEIGHED["mean"].weighted("none", "mean"), **options)
    flash = emulated(made, monkeypatch)
    found, _ = generated(made, inputs, WEIGHED["mean"], **options)
    torch.testing.assert_close(found, wanted, **CLOSE)
    assert set(flash.widths) == {8, 16}
    assert (found - light).abs().max() > 20 * CLOSE["atol"]


def test_whoever_weighs_but_keeps_all_runs_the_plain_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, inputs = model("llava"), batch("llava", Layout(((3, 0, 5),))).inputs
    flash = emulated(made, monkeypatch)
    with torch.no_grad():
        plain = made(**inputs).logits
        with foveate.apply(made, random(layer=1, keep=1.0).weighted("nearest", "none")):
            assert torch.equal(made(**inputs).logits, plain)
    assert set(flash.widths) == {8}


class Stopped(Exception):
    """Raised by a test."""


def configs(made: Any) -> list[Any]:
    return [layer.self_attn.config for layer in made.model.language_model.layers]


@pytest.mark.parametrize("error", [Stopped, KeyboardInterrupt])
@pytest.mark.parametrize("part", ["self_attn", "mlp"])
def test_the_model_is_as_before_after_a_forward_and_after_an_exception(
    part: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception before the kernel runs finds the layer with its bias; one after it, without."""
    made, inputs = model("llava"), batch("llava", Layout(((3, 0, 5),))).inputs
    emulated(made, monkeypatch)
    layer, config = made.model.language_model.layers[2], made.model.language_model.config
    seen: list[bool] = []

    def stop(*_: Any) -> None:
        seen.append(layer.self_attn.config is config)
        raise error

    with torch.no_grad():
        plain = made(**inputs).logits
        with foveate.apply(made, WEIGHED["once"]):
            weighed = made(**inputs).logits
            assert all(found is config for found in configs(made))
            handle = getattr(layer, part).register_forward_pre_hook(stop)
            with pytest.raises(error):
                made(**inputs)
            handle.remove()
            assert torch.equal(made(**inputs).logits, weighed)
            handle = getattr(layer, part).register_forward_pre_hook(stop)
            with pytest.raises(error):
                made(**inputs)
            handle.remove()
        assert seen == [part == "mlp"] * 2
        assert all(found is config for found in configs(made))
        assert config._attn_implementation == "flash_attention_2"
        assert torch.equal(made(**inputs).logits, plain)


def test_two_models_in_two_threads_keep_their_weights_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flash = emulated(model("llava"), monkeypatch)
    mades = [model("llava"), copy.deepcopy(model("llava"))]
    inputs = [batch("llava", Layout(((3, 0, 5),), seed=seed)).inputs for seed in (1, 2)]
    methods = [WEIGHED["once"], random(layer=2, keep=0.2).weighted("nearest", "none")]
    wanted = [generated(*args)[0] for args in zip(mades, inputs, methods, strict=True)]
    barrier, found = threading.Barrier(2, timeout=20), [[], []]

    def work(number: int) -> None:
        for layer in mades[number].model.language_model.layers:
            layer.self_attn.register_forward_pre_hook(lambda *_: (barrier.wait(), None)[1])
        found[number].append(generated(mades[number], inputs[number], methods[number])[0])

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    hooks = [layer.self_attn._forward_pre_hooks for layer in mades[0].model.language_model.layers]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for given in hooks:
            given.clear()
    for number in (0, 1):
        assert torch.equal(found[number][0], wanted[number])
    assert set(flash.widths) == {8, 16}


def test_attention_that_takes_no_bias_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    made, inputs = model("llava"), batch("llava", Layout(((3, 0, 5),))).inputs
    emulated(made, monkeypatch)
    for number in (1, 3):  # the last layer too, after which no other comes
        attention = made.model.language_model.layers[number].self_attn
        monkeypatch.setattr(attention, "forward", lambda hidden_states, **_: (hidden_states, None))
        refused = pytest.raises(ValueError, match=f"layer {number} does not look up its function")
        with torch.no_grad(), foveate.apply(made, WEIGHED["once"]), refused:
            made(**inputs)
        monkeypatch.undo()
        emulated(made, monkeypatch)


def test_what_flash_attention_could_not_weigh_rightly_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = model("llava")
    emulated(made, monkeypatch)
    decoder = made.model.language_model
    monkeypatch.setattr(decoder.config, "attn_logit_softcapping", 30.0, raising=False)
    with pytest.raises(ValueError, match="caps its products at 30"):
        foveate.apply(made, WEIGHED["once"])
    foveate.apply(made, random(layer=1, keep=0.5))
    monkeypatch.setattr(decoder.config, "attn_logit_softcapping", None)
    monkeypatch.setattr(decoder.layers[0].self_attn, "head_dim", 256)
    with pytest.raises(ValueError, match="heads of up to 256, and one of 256 with a bias is 264"):
        foveate.apply(made, WEIGHED["once"])
    assert why_not(249, None) is None and why_not(255, None) is not None
    config = SimpleNamespace(put_back=lambda: True, _attn_implementation="flash_attention_2")
    states = torch.zeros(1, 1, 1, 8)
    with pytest.raises(ValueError, match=r"speak for others.* caps its products at 9"):
        attend_biased(SimpleNamespace(config=config), *[states] * 3, None, softcap=9.0)


@pytest.mark.parametrize("head", [7, 8, 12, 15, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", [torch.float32, torch.bfloat16, torch.float16])
def test_the_bias_survives_half_precision(
    head: int, dtype: torch.dtype, kernel: torch.dtype
) -> None:
    """Within 2^-18 of it, whatever the states are cast to; a plain bfloat16 would lose up to 2^-9."""
    draw = torch.Generator().manual_seed(head)
    bias = torch.rand(2, 50, generator=draw) * 6.4
    q, k, v = (torch.zeros(2, heads, 50, head, dtype=dtype) for heads in (4, 2, 2))
    v = v + 3
    q, k, v = (part.to(kernel).float() for part in widened(q, k, v, bias, head**-0.5))
    assert q.shape[-1] == k.shape[-1] == v.shape[-1] and q.shape[-1] % 8 == 0
    assert q.shape[-1] - head <= 9 and (v[..., :head] == 3).all() and not v[..., head:].any()
    products = (q[:, :2] @ k.mT)[:, :, 0] * head**-0.5
    wrong = (products - bias[:, None]).abs().max().item()
    assert wrong < 6.4 * 2**-17
    assert (bias.bfloat16().float() - bias).abs().max() > 100 * wrong


@pytest.mark.parametrize("weighting", [UNWEIGHED, Weighting("nearest", "mean")])
def test_trials_and_training_under_emulated_flash_attention_equal_sdpa(
    weighting: Weighting, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = model("llava")
    inputs = batch("llava", Layout(((3, 0, 5), (2, 0, 2), (6, 0, 1)))).inputs
    given = followed(made, inputs, some_answers(3, 5))
    keep = (1.0, 0.7, 0.7, 0.2)

    def run() -> tuple[Tensor, Tensor]:
        runner = Runner(made, LastQuery(), weighting=weighting)
        state = runner.reach(runner.start(given), keep[:2])
        with torch.no_grad():
            taught = roll_out(
                made, tiny_predictor(), LastQuery(), 2, given, likeliest, weighting=weighting
            )
        return runner.to_end(state, keep)[given.answered], taught.logits[given.answered]

    wanted = run()
    flash = emulated(made, monkeypatch)
    for mine, theirs in zip(run(), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, **CLOSE)
    assert (16 in flash.widths) == (weighting is not UNWEIGHED)
