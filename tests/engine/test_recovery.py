"""What goes wrong halfway, and what is taken back: a cache is as it should be, or says that it is not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, DynamicCache

import foveate
from foveate.core.method import Method
from foveate.core.scores import Even, LastQuery
from foveate.methods import fastv, random, visionzip, vtw
from models.tiny import Layout, batch, cache_in, held, llava, model

ONE, NEXT = Layout(((3, 0, 5),)), Layout(((2, 0, 4),), seed=4)
CLOSE = {"atol": 2e-4, "rtol": 1e-3}


def second(made: Any, cache: Any) -> Tensor:
    inputs = batch("llava", NEXT).inputs
    return made(
        input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"], **held(cache)
    ).logits


@pytest.mark.parametrize("turn", [1, 2])
def test_a_cache_whose_forward_failed_halfway_is_not_used_again(turn: int) -> None:
    made, inputs, failing = model("llava"), batch("llava", ONE).inputs, [False]

    def schedule(view: foveate.View) -> Tensor:
        if failing[0] and view.layer == 2:
            raise ZeroDivisionError
        return view.total // 2 if view.layer == 1 else view.alive

    cache = DynamicCache(config=made.config)
    with torch.no_grad(), foveate.apply(made, Method(Even(), schedule)):
        if turn == 2:
            made(**inputs, **held(cache))
        failing[0] = True
        with pytest.raises(ZeroDivisionError):
            second(made, cache)
        failing[0] = False
        with pytest.raises(ValueError, match="failed halfway"):
            second(made, cache)
        cache.reset()
        assert torch.equal(second(made, cache), second(made, DynamicCache(config=made.config)))
    failing[0] = True
    with torch.no_grad():
        with foveate.apply(made, Method(Even(), schedule)), pytest.raises(ZeroDivisionError):
            made(**inputs, **held(cache := DynamicCache(config=made.config)))
        with pytest.raises(RuntimeError, match="go on inside"):
            second(made, cache)


def test_taking_back_more_than_can_be_leaves_the_cache_as_it_was() -> None:
    made, inputs, found = model("llava"), batch("llava", ONE).inputs, []
    for crop in (False, True):
        with torch.no_grad(), foveate.apply(made, vtw(2)):
            cache = cache_in(made(**inputs, use_cache=True))
            if crop:
                with pytest.raises(NotImplementedError, match="only the last 5"):
                    cache.crop(-8)
            found.append(second(made, cache))
    assert torch.equal(*found)


def test_visual_tokens_that_are_taken_back_no_longer_count() -> None:
    made, inputs = model("llava"), batch("llava", ONE).inputs
    plain, words = DynamicCache(config=made.config), torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        made(**inputs, **held(plain))
        plain.crop(-8)
        want = made(input_ids=words, **held(plain)).logits
        for method, kept in ((), 13), ((random(layer=1, keep=0.5),), 7):
            with foveate.apply(made):
                cache = cache_in(made(**inputs, use_cache=True))
                cache.crop(-8)
            with foveate.apply(made, *method) as trace:
                got = made(input_ids=words, **held(cache)).logits
            assert trace.prefill() == [[13], [kept], [kept], [kept]] and trace.passes[
                0
            ].past.tolist() == [3]
            assert torch.allclose(got, want, **CLOSE) == (kept == 13)


def test_attention_of_columns_that_do_not_run_is_refused() -> None:
    made, inputs = model("llava"), batch("llava", ONE).inputs
    asked = torch.tensor([[1]])

    def watch(view: foveate.View) -> None:
        if view.layer == 2:
            view.attention(asked)

    with torch.no_grad(), foveate.apply(made, watch=watch):
        cache = cache_in(made(**inputs, use_cache=True))
        with pytest.raises(ValueError, match="did not run now"):
            made(input_ids=torch.tensor([[5, 6]]), **held(cache))


def test_a_watcher_sees_what_the_coming_layer_will_pay() -> None:
    made, inputs = model("llava"), batch("llava", ONE).inputs
    coming: list[Tensor] = []
    paid: list[Tensor] = []

    def watch(view: foveate.View) -> None:
        if view.layer:
            paid.append(view.attention(view.newest))
        if view.layer < view.layers:
            coming.append(view.attention(view.newest, 0))

    with torch.no_grad(), foveate.apply(made, watch=watch):
        made(**inputs)
    assert len(paid) == len(coming) == 4
    for early, late in zip(coming, paid, strict=True):
        torch.testing.assert_close(early, late)


def test_two_that_enter_at_once_are_not_both_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model("llava")
    engine = foveate.engine.apply.Engine
    inside: list[int] = []

    def slow(*args: Any, **kwargs: Any) -> Any:
        """As if another thread came while hooks are made."""
        if not inside:
            inside.append(1)
            with pytest.raises(RuntimeError, match="already active"), foveate.apply(made):
                pass
        return engine(*args, **kwargs)

    monkeypatch.setattr(foveate.engine.apply, "Engine", slow)
    with foveate.apply(made, vtw(1)):
        assert inside


def test_what_a_graph_holds_is_not_written_over() -> None:
    """Decoding without gradients, and dropping, on a cache that a backward pass still needs."""
    torch.manual_seed(0)
    made = AutoModelForImageTextToText.from_config(llava()).eval()
    inputs, weight = (
        batch("llava", ONE).inputs,
        made.model.language_model.layers[0].self_attn.q_proj.weight,
    )
    found = []
    for more in (False, True):
        with foveate.apply(
            made,
            Method(
                LastQuery(),
                lambda view: view.total // (view.step + 2) if view.layer == 2 else view.alive,
            ),
        ):
            out = made(**inputs, use_cache=True)
            with torch.no_grad():
                for word in (5, 6) if more else ():
                    made(input_ids=torch.tensor([[word]]), **held(cache_in(out)))
                    cache_in(out).reorder_cache(torch.tensor([0]))
            found.append(torch.autograd.grad(out.logits.square().mean(), weight)[0])
    assert torch.equal(*found)


def test_a_copy_inside_is_refused_and_outside_is_clean() -> None:
    made = model("llava")
    with (
        foveate.apply(made, fastv(layer=1)),
        pytest.raises(RuntimeError, match="copy it outside of the with block"),
    ):
        copy.deepcopy(made)
    assert not copy.deepcopy(made).model.language_model._forward_pre_hooks


@pytest.mark.parametrize("way", ["module", "wrapper"])
def test_a_compiled_tower_is_refused_by_methods_that_look_at_it(way: str) -> None:
    made = copy.deepcopy(model("llava"))
    if way == "module":
        made.model.vision_tower.compile(backend="eager")
    else:
        made.model.vision_tower = torch.compile(made.model.vision_tower, backend="eager")
    with pytest.raises(ValueError, match=r"tower, which is compiled"):
        foveate.apply(made, visionzip(keep=0.5))
    foveate.apply(made, fastv(layer=1))
