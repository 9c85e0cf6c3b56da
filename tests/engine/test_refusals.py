"""What cannot be right is refused, clearly; and whatever happens, the model stays whole."""

from __future__ import annotations

import copy
import io
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, DynamicCache, LlamaConfig, LlamaForCausalLM

import foveate
from foveate.core.method import Method
from foveate.core.schedules import Cut
from foveate.core.scores import Even
from foveate.methods import fastv, flowcut, random, vtw
from models.tiny import LAYERS, batch, cache_in, checkpointing, held, llava, model
from oracles.layouts import LAYOUTS, hooks


def test_an_exception_inside_leaves_the_model_whole() -> None:
    made, data = model("llava"), batch("llava", LAYOUTS["one"])

    def bad(view: foveate.View) -> torch.Tensor:
        raise ZeroDivisionError("a user's score failed")

    with torch.no_grad():
        plain = made(**data.inputs).logits
        before = hooks(made)  # transformers puts hooks of its own on the tower in its first forward
        with pytest.raises(ZeroDivisionError), foveate.apply(made, Method(bad, Cut(1, 0.5))):
            made(**data.inputs)
        assert hooks(made) == before and torch.equal(made(**data.inputs).logits, plain)
        with foveate.apply(made, fastv(layer=1)) as trace:
            made(**data.inputs)
    assert len(trace.passes) == 1


def test_nested_apply_is_refused_and_repeated_apply_is_fine() -> None:
    made = model("llava")
    with (
        foveate.apply(made, fastv()),
        pytest.raises(RuntimeError, match="already active"),
        foveate.apply(made, vtw(1)),
    ):
        pass
    with foveate.apply(made, fastv()):
        pass


def test_two_threads_at_once_are_refused_and_in_turn_are_fine() -> None:
    made, data = model("llava"), batch("llava", LAYOUTS["one"])
    caught: list[BaseException] = []
    inside = False

    def run() -> None:
        try:
            with torch.no_grad():
                made(**data.inputs)
        except RuntimeError as error:
            caught.append(error)

    def other_thread(view: foveate.View) -> torch.Tensor:
        nonlocal inside
        if not inside:
            inside = True
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
        return view.total // 2

    with torch.no_grad(), foveate.apply(made, Method(Even(), other_thread)) as trace:
        made(**data.inputs)
        assert len(caught) == 1 and "two threads" in str(caught[0])
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert len(caught) == 1 and len(trace.passes) == 2


def llama() -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    )


def test_what_cannot_be_right_is_refused_at_apply() -> None:
    with pytest.raises(ValueError, match="no visual tokens"):
        foveate.apply(llama(), fastv())
    with pytest.raises(ValueError, match="layers 0 to 3"):
        foveate.apply(model("llava"), vtw(layer=LAYERS))
    with pytest.raises(ValueError, match="did you mean 'fastv'"):
        foveate.apply(model("llava"), "fastvv:keep=0.5")
    fresh = AutoModelForImageTextToText.from_config(llava())
    fresh.generation_config.cache_implementation = "quantized"
    with pytest.raises(ValueError, match="cache_implementation"):
        foveate.apply(fresh, fastv())
    fresh.generation_config.cache_implementation = None
    checkpointing(fresh, True)
    with pytest.raises(ValueError, match="gradient checkpointing"):
        foveate.apply(fresh, fastv())
    checkpointing(fresh, False)
    fresh.set_attn_implementation("paged|eager")
    with pytest.raises(ValueError, match="attn_implementation"):
        foveate.apply(fresh, fastv())
    fresh.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="compiled"):
        foveate.apply(torch.compile(fresh), fastv())
    fresh.config.model_type = "unheard_of"
    with pytest.raises(ValueError, match="no adapter for the family 'unheard_of'"):
        foveate.apply(fresh, fastv())


class Another(DynamicCache):
    """A cache that nobody knows."""


def test_what_cannot_be_right_is_refused_in_a_forward() -> None:
    made, data = model("llava"), batch("llava", LAYOUTS["one"])
    ids, mask = data.inputs["input_ids"], data.inputs["attention_mask"]
    with torch.no_grad():
        foreign = cache_in(made(**data.inputs, use_cache=True))
        with foveate.apply(made, fastv(layer=1)):
            with pytest.raises(ValueError, match=r"not run under foveate\.apply"):
                made(input_ids=ids[:, :1], **held(foreign))
            with pytest.raises(TypeError, match="Another"):
                made(**data.inputs, **held(Another(config=made.config)))
            with pytest.raises(ValueError, match="4 dimensions"):
                made(
                    input_ids=ids,
                    pixel_values=data.inputs["pixel_values"],
                    attention_mask=mask[:, None, None].bool().expand(1, 1, 24, 24),
                )
            with pytest.raises(ValueError, match="columns; expected 24"):
                made(
                    input_ids=ids,
                    pixel_values=data.inputs["pixel_values"],
                    attention_mask=mask[:, 1:],
                )
            with pytest.raises(ValueError, match="called directly"):
                made.model.language_model(inputs_embeds=torch.zeros(1, 2, 32))
            assert made(**data.inputs).logits.shape[1] == 24, (
                "a refused forward must not block the next"
            )


def test_schedules_and_scores_of_a_wrong_shape_are_refused() -> None:
    made, data = model("llava"), batch("llava", LAYOUTS["left"])
    with torch.no_grad():
        with (
            foveate.apply(made, Method(Even(), lambda view: view.total[:1])),
            pytest.raises(ValueError, match="schedule of"),
        ):
            made(**data.inputs)
        with (
            foveate.apply(made, Method(lambda view: view.total, Cut(1, 0.5))),
            pytest.raises(ValueError, match="score of"),
        ):
            made(**data.inputs)
        with foveate.apply(made, Method(random().score, Cut(1, 0.5))):
            made(**data.inputs)


def test_attention_before_layer_0_is_refused() -> None:
    made, data = model("llava"), batch("llava", LAYOUTS["one"])
    method = Method(fastv().score, Cut(0, 0.5))
    with pytest.raises(ValueError, match="layer 0 has no layer before"):
        foveate.apply(made, method)
    anywhere = Method(fastv().score, lambda view: view.total // 2)
    with (
        torch.no_grad(),
        foveate.apply(made, anywhere),
        pytest.raises(ValueError, match="layer 0 has no layer before"),
    ):
        made(**data.inputs)


def test_a_cache_that_lost_tokens_is_not_used_outside() -> None:
    made, data = model("llava"), batch("llava", LAYOUTS["one"])
    with torch.no_grad():
        with foveate.apply(made, fastv(layer=1, keep=0.5)):
            cache = cache_in(made(**data.inputs, use_cache=True))
        with pytest.raises(RuntimeError, match="go on inside"):
            made(input_ids=torch.tensor([[5]]), **held(cache))
        with foveate.apply(made):
            made(input_ids=torch.tensor([[5]]), **held(cache))


@pytest.mark.parametrize("method", [fastv(layer=1, keep=0.5), flowcut(keep=0.5)])
def test_a_model_that_is_pruned_is_copied_and_saved_whole_outside_only(method: Method) -> None:
    made = AutoModelForImageTextToText.from_config(llava())
    with foveate.apply(made, method):
        for write in (copy.deepcopy, lambda network: torch.save(network, io.BytesIO())):
            with pytest.raises(RuntimeError, match="outside of the with block"):
                write(made)
        torch.save(made.state_dict(), io.BytesIO())
    saved = io.BytesIO()
    torch.save(made, saved)
    saved.seek(0)
    back = torch.load(saved, weights_only=False)
    assert hooks(back) == hooks(made)


def test_wrappers_for_several_devices_say_what_to_do_instead(tmp_path: Path) -> None:
    made, data = AutoModelForImageTextToText.from_config(llava()), batch("llava", LAYOUTS["one"])
    with pytest.raises(ValueError, match=r"DataParallel is not supported: it copies.*torchrun"):
        foveate.apply(torch.nn.DataParallel(made), fastv())
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(made)
        with pytest.raises(ValueError, match=r"DistributedDataParallel.*\.module"):
            foveate.apply(wrapped, fastv())
        with torch.no_grad(), foveate.apply(wrapped.module, fastv(layer=1, keep=0.5)) as trace:
            outer, inner = wrapped(**data.inputs).logits, made(**data.inputs).logits
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(outer, inner) and trace.prefill(0) == trace.prefill(1) != [[16]] * LAYERS
