"""Weights in other forms than plain linear layers on one device, and models that are wrapped, hooked or compiled."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

import foveate
from foveate.methods import fastv, random, vtw
from models.families import model as family
from models.far import FAR, TwoDevices, placed
from models.prompts import prompt, together
from models.tiny import batch, cache_in, checkpointing, held, llava, model
from oracles.cases import METHODS
from oracles.layouts import LAYOUTS

CLOSE = {"atol": 2e-4, "rtol": 1e-3}


class Quantised(nn.Module):
    """Eight bits a weight, and no attribute `weight`: what a quantised layer looks like from outside."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        scale = plain.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("packed", (plain.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("offset", None if plain.bias is None else plain.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.packed * self.scale, self.offset)

    def dequantised(self) -> nn.Linear:
        made = nn.Linear(self.packed.shape[1], self.packed.shape[0], self.offset is not None)
        made.weight.data = self.packed * self.scale
        if self.offset is not None:
            made.bias.data = self.offset
        return made


def replaced(made: Any, kind: type, by: Any) -> Any:
    """A copy whose decoder's layers of a kind are others."""
    made = copy.deepcopy(made)
    for module in list(made.model.language_model.layers.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, kind):
                setattr(module, name, by(child))
    return made


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_quantised_layers_give_what_their_plain_form_gives(name: str) -> None:
    if name == "llava":
        plain, inputs = model("llava"), batch("llava", LAYOUTS["left"]).inputs
    else:
        plain, inputs = (
            family(name),
            together([prompt(name, (3, "a", 5), 1), prompt(name, (2, "b", 2, "a", 1), 2)]),
        )
    small = replaced(plain, nn.Linear, Quantised)
    rounded = replaced(small, Quantised, Quantised.dequantised)
    found = []
    for made in (small, rounded):
        with foveate.apply(made, fastv(layer=1, keep=0.5)) as trace:
            out = made.generate(
                **inputs,
                max_new_tokens=3,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        found.append((torch.stack(out.logits), trace.kept))
    torch.testing.assert_close(found[0][0], found[1][0], **CLOSE)
    assert found[0][1] == found[1][1]


@pytest.mark.parametrize("offloaded", [1, 2, 4])
@pytest.mark.parametrize("method", [fastv(layer=2, keep=0.5), random(layer=0, keep=0.5)])
def test_layers_whose_weights_are_elsewhere(method: Any, offloaded: int) -> None:
    """accelerate's dispatch: some layers' weights lie on the meta device and come only when a module runs."""
    accelerate = pytest.importorskip("accelerate")
    inputs = batch("llava", LAYOUTS["left"]).inputs
    plain = model("llava")
    with torch.no_grad(), foveate.apply(plain, method):
        want = plain(**inputs).logits
    made = copy.deepcopy(plain)
    state = {k: v.clone() for k, v in made.state_dict().items()}
    for layer in list(made.model.language_model.layers)[:offloaded]:
        prefix = next(f"{name}." for name, module in made.named_modules() if module is layer)
        accelerate.cpu_offload(
            layer,
            "cpu",
            state_dict={
                k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)
            },
        )
        assert next(layer.parameters()).device.type == "meta"
    with torch.no_grad(), foveate.apply(made, method):
        torch.testing.assert_close(made(**inputs).logits, want, **CLOSE)


SPREAD = (
    "fastv",
    "random",
    "decay",
    "instruction",
    "downsample",
    "dart",
    "visionzip",
    "random+fastv",
)


@pytest.mark.parametrize("method", SPREAD)
def test_layers_on_two_devices(method: str) -> None:
    """As `device_map` over two: every layer fetches its inputs, and what lies apart must not meet in the engine."""
    methods, inputs = (
        [case.method for case in METHODS[method]],
        batch("llava", LAYOUTS["left"]).inputs,
    )
    near, far = model("llava", "eager"), copy.deepcopy(model("llava", "eager"))
    decoder = far.model.language_model
    for index, layer in enumerate(decoder.layers):
        placed(layer, FAR if index in (1, 2) else torch.device("cpu"))
    found = []
    with torch.no_grad(), TwoDevices():
        for made in (near, far):
            with foveate.apply(made, *methods) as trace:
                out, mask = made(**inputs, use_cache=True), inputs["attention_mask"]
                steps = [out.logits]
                for word in (7, 8):
                    mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
                    ids = torch.full((len(mask), 1), word)
                    steps.append(
                        made(input_ids=ids, attention_mask=mask, **held(cache_in(out))).logits
                    )
            found.append((steps, trace.kept))
        assert cache_in(out).layers[1].keys.device == FAR
    for mine, theirs in zip(*(steps for steps, _ in found), strict=True):
        assert torch.equal(mine, theirs)
    assert found[0][1] == found[1][1] and trace.mean_kept() < 1


def test_inference_mode_is_no_grad() -> None:
    made, inputs = model("llava"), batch("llava", LAYOUTS["left"]).inputs
    with foveate.apply(made, fastv(layer=1, keep=0.5)):
        with torch.no_grad():
            want = made(**inputs).logits
        with torch.inference_mode():
            assert torch.equal(made(**inputs).logits, want)
            assert made.generate(**inputs, max_new_tokens=3, do_sample=False).shape[0] == 3


@pytest.mark.slow
def test_a_compiled_vision_tower_is_as_good_as_a_plain_one() -> None:
    inputs = batch("llava", LAYOUTS["left"]).inputs
    with torch.no_grad(), foveate.apply(model("llava"), fastv(layer=1, keep=0.5)):
        want = model("llava")(**inputs).logits
    made = copy.deepcopy(model("llava"))
    made.model.vision_tower.compile(backend="eager")
    with torch.no_grad(), foveate.apply(made, fastv(layer=1, keep=0.5)) as trace:
        torch.testing.assert_close(made(**inputs).logits, want, **CLOSE)
    assert trace.mean_kept() < 1


def test_gradient_checkpointing_of_the_tower_alone_is_fine() -> None:
    made = AutoModelForImageTextToText.from_config(llava())
    checkpointing(made, True)
    with pytest.raises(ValueError, match="gradient checkpointing"), foveate.apply(made, vtw(1)):
        pass
    checkpointing(made.model.language_model, False)
    made.model.language_model.layers[2].gradient_checkpointing = True  # as of every third layer
    with pytest.raises(ValueError, match="gradient checkpointing"):
        foveate.apply(made, vtw(1))
    checkpointing(made.model.language_model, False)
    with foveate.apply(made, vtw(1)):
        assert made(**batch("llava", LAYOUTS["one"]).inputs).logits.requires_grad


def test_other_features_than_the_configurations() -> None:
    """A call may ask for the class token too: 17 tokens an image; what touches is then one image."""
    made = model("llava")
    ids = torch.tensor([[3, *[63] * 34, 5]])
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    seen: list[Any] = []
    with torch.no_grad(), foveate.apply(made, vtw(2), watch=lambda view: seen.append(view.tokens)):
        made(input_ids=ids, pixel_values=pixels, vision_feature_select_strategy="full")
        assert seen[0].grid is None and seen[0].image.max() == 0
        made(
            input_ids=torch.tensor([[3, *[63] * 32, 5]]),
            pixel_values=pixels,
            vision_feature_layer=-2,
        )
    assert seen[-1].grid == (4, 4) and seen[-1].image.max() == 1
