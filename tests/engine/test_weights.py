"""Weights in other forms than plain linear layers on one device, and models that are wrapped, hooked or compiled."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

import foveate
from foveate.engine.anatomy import anatomy_of
from foveate.methods import fastv, flowcut, random, tome, visionzip, vtw
from models.families import model as family
from models.far import FAR, TwoDevices, placed
from models.prompts import prompt, together
from models.tiny import IMAGE, VIDEO, batch, cache_in, checkpointing, held, llava, model
from oracles.cases import METHODS
from oracles.layouts import LAYOUTS

CLOSE = {"atol": 2e-4, "rtol": 1e-3}


class Quantised(nn.Module):
    """Eight bits a weight, and no attribute `weight`: what a quantised layer looks like from outside."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        scale = plain.weight.detach().abs().amax(1, keepdim=True) / 127
        self.in_features, self.out_features = plain.in_features, plain.out_features
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


def tower_of(made: Any) -> Any:
    return made.model.vision_tower if hasattr(made.model, "vision_tower") else made.model.visual


def replaced(made: Any, kind: type, by: Any, tower: bool = False) -> Any:
    """A copy whose decoder's layers of a kind are others; with `tower`, the vision tower's."""
    made = copy.deepcopy(made)
    room = tower_of(made) if tower else made.model.language_model.layers
    for module in list(room.modules()):
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


TOWERS = [
    (name, method)
    for name in ("llava", "qwen2_5_vl", "internvl")
    for method in (visionzip(keep=0.5), flowcut(keep=0.5), tome(keep=0.5))
]


def pictured(name: str) -> tuple[Any, dict[str, Any]]:
    """A tiny model of a family, and a batch with pictures."""
    if name == "llava":
        return model("llava"), batch("llava", LAYOUTS["left"]).inputs
    prompts = [prompt(name, (3, "a", 5), 1), prompt(name, (2, "b", 2, "a", 1), 2)]
    return family(name), together(prompts)


@torch.no_grad()
def decided(made: Any, inputs: dict[str, Any], method: Any) -> tuple[Tensor, Any]:
    """Logits of three steps, and what was kept."""
    with foveate.apply(made, method) as trace:
        out = made.generate(
            **inputs,
            max_new_tokens=3,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            suppress_tokens=[IMAGE, VIDEO],
        )
    return torch.stack(out.logits), trace.kept


def check_alike(made: Any, plain: Any, inputs: dict[str, Any], method: Any) -> None:
    got, want = decided(made, inputs, method), decided(plain, inputs, method)
    torch.testing.assert_close(got[0], want[0], **CLOSE)
    assert got[1] == want[1]


@pytest.mark.parametrize(("name", "method"), TOWERS)
def test_a_quantised_tower_chooses_as_its_plain_form(name: str, method: Any) -> None:
    plain, inputs = pictured(name)
    small = replaced(plain, nn.Linear, Quantised, tower=True)
    check_alike(small, replaced(small, Quantised, Quantised.dequantised, True), inputs, method)


@pytest.mark.parametrize(("name", "method"), TOWERS)
def test_an_offloaded_tower_chooses_as_one_that_is_here(name: str, method: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    plain, inputs = pictured(name)
    made = copy.deepcopy(plain)
    tower = tower_of(made)
    accelerate.cpu_offload(tower, "cpu", offload_buffers=False)
    assert next(tower.parameters()).device.type == "meta"
    check_alike(made, plain, inputs, method)


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # peft itself asks so
@pytest.mark.parametrize(("name", "method"), TOWERS)
def test_an_adapter_on_the_tower_takes_part_in_the_choice(name: str, method: Any) -> None:
    peft = pytest.importorskip("peft")
    plain, inputs = pictured(name)
    config = peft.LoraConfig(
        r=2, init_lora_weights=False, target_modules=r".*vis.*\.(qkv|[qk]_proj)"
    )
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(copy.deepcopy(plain), config).eval()
    merged = copy.deepcopy(wrapped).merge_and_unload()
    assert not torch.allclose(
        decided(merged, inputs, method)[0], decided(plain, inputs, method)[0], **CLOSE
    )
    check_alike(wrapped, merged, inputs, method)


def test_a_tower_that_calls_no_projection_is_refused() -> None:
    made = copy.deepcopy(model("llava"))
    for module in made.model.vision_tower.modules():
        if hasattr(module, "k_proj"):
            projection = module.k_proj
            module.k_proj = Silent(projection)
    inputs = batch("llava", LAYOUTS["left"]).inputs
    with pytest.raises(ValueError, match="calls no k_proj or qkv"):
        decided(made, inputs, visionzip(keep=0.5))


class Silent(nn.Module):
    """Stands in for a kernel that reads a projection's weights and does not call it."""

    def __init__(self, projection: nn.Module) -> None:
        super().__init__()
        self.projection = projection
        self.register_forward_hook = self._nothing  # type: ignore[assignment]

    def _nothing(self, hook: Any) -> Any:
        return self.projection.register_forward_pre_hook(lambda *_: None)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(x)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_the_cost_of_a_quantised_model_is_that_of_its_plain_form(name: str) -> None:
    plain, _ = pictured(name)
    small = replaced(replaced(plain, nn.Linear, Quantised), nn.Linear, Quantised, tower=True)
    assert anatomy_of(small).tower_shape == anatomy_of(plain).tower_shape
    assert anatomy_of(small).shapes == anatomy_of(plain).shapes


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
