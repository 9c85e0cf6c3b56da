"""FLOPs on EVERY family: what tower, projector, decoder and head cost is what torch's own counter counts, exactly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

import foveate
from foveate.cli.app import run
from foveate.cost import roofline as limits
from foveate.cost.architecture import architecture
from foveate.cost.devices import DEVICES
from foveate.cost.flops import Cost, cost_of_counts, cost_of_trace, kept_by, shapes
from foveate.cost.pictures import KNOWN, picture
from foveate.cost.plan import Request
from foveate.cost.vision import vision_flops
from foveate.engine.anatomy import anatomy_of, hollow
from foveate.engine.sizes import layer_shape
from foveate.methods import fastv, random, vtw
from foveate.models.loaded import Loaded
from foveate.timing import comparison
from foveate.timing import race as bench
from models.families import FAMILIES, build, model
from models.prompts import features, prompt, together
from models.tiny import IMAGE, VIDEO
from oracles.counting import MAPPING

GROUPED = torch.ops.aten._grouped_mm
METHODS = {
    "plain": (),
    "fastv": (fastv(layer=2, keep=0.5),),
    "random": (random(layer=0, keep=0.25),),
}
MIXTURES = ("qwen3_vl_moe", "glm4v_moe", "aria")
STEPS = 3


def grouped_flops(rows: Any, weights: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Each row goes through the matrix of one expert."""
    return 2 * rows[0] * rows[1] * weights[2]


@contextmanager
def counting(made: Any) -> Iterator[FlopCounterMode]:
    """Counts with frozen weights: the counter hooks onto gradients, which Idefics2's latents have not under no_grad."""
    mapping = {**MAPPING, GROUPED: grouped_flops}
    free = [p for p in made.parameters() if p.requires_grad]
    for p in free:
        p.requires_grad_(False)
    try:
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            yield counter
    finally:
        for p in free:
            p.requires_grad_(True)


def inputs(name: str) -> dict[str, Any]:
    """One sample with a picture of every kind that the family takes, videos included."""
    kinds = FAMILIES[name].kinds
    return together([prompt(name, (3, *(part for kind in kinds for part in (kind, 2)), 4), seed=1)])


def ran(name: str, methods: Any, backend: str) -> tuple[int, Cost]:
    """What torch counts in `generate`, and what we compute."""
    made, batch = model(name, backend), inputs(name)
    with foveate.apply(made, *methods) as trace, counting(made) as counter:
        made.generate(
            **batch,
            max_new_tokens=STEPS,
            min_new_tokens=STEPS,
            do_sample=False,
            suppress_tokens=[IMAGE, VIDEO],
        )
    return int(counter.get_total_flops()), cost_of_trace(
        shapes(made), trace, tower=vision_flops(made, batch)
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_generating_costs_what_torch_counts_on_every_family(name: str) -> None:
    seen = set()
    for methods in METHODS.values():
        counted, cost = ran(name, methods, FAMILIES[name].backends[0])
        assert cost.flops == counted
        assert min(cost.tower, cost.prefill, cost.decode, cost.head) > 0
        seen.add(counted)
    assert len(seen) == len(METHODS), "a method changes nothing, so this test could not fail"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_bare_forward_costs_what_torch_counts_on_every_family(name: str) -> None:
    made, batch = model(name, FAMILIES[name].backends[-1]), inputs(name)
    with foveate.apply(made, fastv(layer=2, keep=0.5)) as trace, counting(made) as counter:
        made(**batch)
    cost = cost_of_trace(shapes(made), trace, tower=vision_flops(made, batch), all_logits=True)
    assert cost.flops == counter.get_total_flops() and cost.decode == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_a_plan_costs_what_torch_counts_on_every_family(name: str) -> None:
    """Counts of a schedule alone, with the tower's FLOPs, foretell a run; random ranks by nothing, so for free."""
    counted, cost = ran(name, METHODS["random"], FAMILIES[name].backends[0])
    batch, made = inputs(name), model(name, FAMILIES[name].backends[0])
    visual = int(anatomy_of(made).visual(batch["input_ids"]).sum())
    text, kept = batch["input_ids"].numel() - visual, kept_by(METHODS["random"], 4, visual)
    planned = cost_of_counts(
        shapes(made), kept, text=text, new_tokens=STEPS, visual=visual, tower=cost.tower
    )
    assert planned.flops == counted and planned.kv_bytes == cost.kv_bytes


@pytest.mark.parametrize("name", FAMILIES)
def test_a_configuration_says_what_the_weights_say_on_every_family(name: str) -> None:
    made = model(name, FAMILIES[name].backends[0])
    whole, found = anatomy_of(made), architecture(FAMILIES[name].config(), dtype="float32")
    assert found.shapes == shapes(made) and found.words == whole.word_size
    every = sum(p.numel() for p in {id(p): p for p in made.parameters()}.values())
    norms = every - found.weights - found.words - found.vision
    assert 0 < norms < 0.03 * every  # what is left over are vectors


def pixels_of(kind: str, pixels: dict[str, Tensor]) -> tuple[int, int]:
    """Width and height of a picture of `pictures`."""
    if "image_grid_thw" in pixels:
        _, high, wide = pixels["image_grid_thw"][0].tolist()
        return wide * 4, high * 4
    if "image_sizes" in pixels:
        high, wide = pixels["image_sizes"][0].tolist()
        return wide, high
    high, wide = next(iter(pixels.values())).shape[-2:]
    return wide, high


LIVE_ONLY = {
    "mistral3", "ministral3", "llava_pixtral", "video_llava", "idefics2", "ovis2", "aria",
    "got_ocr2", "lighton_ocr", "perception_lm", "fast_vlm", "video_llama_3",
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [name for name in FAMILIES if "video" not in name or name == "llava_next_video"]
)
def test_the_closed_form_of_the_tower_is_what_torch_counts_or_is_refused(name: str) -> None:
    config = FAMILIES[name].config()
    for kind in FAMILIES[name].kinds.replace("v", ""):
        given = FAMILIES[name].picture(kind, 1)
        size = pixels_of(kind, given)
        if name in LIVE_ONLY:
            with pytest.raises(
                ValueError, match=r"^how many tokens .* is not known from its configuration alone"
            ):
                picture(config, size)
            continue
        made, seen = model(name, FAMILIES[name].backends[0]), picture(config, size)
        live = vision_flops(made, together([prompt(name, (3, kind, 4), seed=1)]))
        assert architecture(config).vision_flops([seen]) == live
        assert seen.tokens == features(name, kind, given)


def test_tiles_that_are_scaled_down_make_as_many_tokens_as_the_closed_form_says() -> None:
    config = FAMILIES["llava_onevision"].config()
    config.vision_aspect_ratio, config.image_grid_pinpoints = "anyres_max_2", [[64, 64]]
    made = AutoModelForImageTextToText.from_config(config)
    pixels = torch.randn(1, 17, 3, 16, 16)
    with torch.no_grad():
        found = made.model.get_image_features(
            pixel_values=pixels, image_sizes=torch.tensor([[48, 64]])
        ).pooler_output
    assert sum(len(part) for part in found) == picture(config, (64, 48)).tokens < 16 * 17 // 2


def test_families_are_measured_live_or_known_in_closed_form() -> None:
    known = {
        config.model_type
        for name, family in FAMILIES.items()
        if name not in LIVE_ONLY
        for config in [family.config()]
    }
    assert known | {"llava", "vipllava"} == set(
        KNOWN
    )  # these two: tests/oracles/test_architecture.py


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_are_counted_by_how_many_a_token_is_sent_to(name: str) -> None:
    """By torch's own counter alone: eager experts are plain products of matrices, which need no formula of ours."""
    made = build(name, "eager")
    made.set_experts_implementation("eager")
    words = torch.arange(3, 15)[None]
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=MAPPING) as counter:
        made(input_ids=words)
    shape = shapes(made)
    assert (
        counter.get_total_flops()
        == cost_of_counts(shape, [0] * 4, text=12).prefill + 2 * shape.head * 12
    )
    sparse = [layer for layer in shape.layers if layer.left]
    assert len(sparse) == (3 if name == "glm4v_moe" else 4)  # GLM's first layer is dense
    for layer in sparse:
        assert layer.idle == 0.5 and layer.stored > layer.matrices == layer.read(1)
        assert layer.read(1) < layer.read(2) < layer.read(50) <= layer.stored
    assert architecture(FAMILIES[name].config()).inner > 0


def test_experts_of_which_nobody_says_how_many_are_used_are_refused() -> None:
    layer = hollow(FAMILIES["aria"].config()).model.language_model.layers[0]
    del layer.mlp.router.top_k
    with pytest.raises(
        ValueError, match="no `top_k` says how many of them a token is sent to"
    ) as refused:
        layer_shape(layer, "aria")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "name", ["qwen2_5_vl", "mistral3", "idefics3", "llava_next", "video_llava"]
)
def test_a_ragged_batch_of_several_pictures_is_counted_as_it_runs(name: str) -> None:
    made = model(name)
    rows = [(3, "a", 2, "b", 2), (2,), (2, "v", 1, "a", 4)]
    batch = together([prompt(name, row, seed) for seed, row in enumerate(rows)])
    with foveate.apply(made, vtw(0)) as trace, counting(made) as counter:
        made(**batch)
    tower = vision_flops(made, batch)
    assert tower > vision_flops(made, together([prompt(name, rows[0], 0)])) > 0
    shape = shapes(made)
    ours = cost_of_trace(shape, trace, tower=tower, all_logits=True)
    # padding is not counted as work; of the rest the tower is left over
    longest, words = batch["input_ids"].shape[1], trace.passes[0].text.tolist()
    waste = 2 * shape.head * (3 * longest - sum(words) - int(trace.passes[0].new.sum()))
    most = max(words)  # the rows that run in every sample once images have left
    waste += sum(
        3 * layer.flops(most) - sum(layer.flops(own) for own in words) for layer in shape.layers
    )
    assert ours.flops + waste == counter.get_total_flops()


def test_grids_of_as_many_patches_may_cost_differently() -> None:
    made, (square, row) = model("qwen2_5_vl"), ([1, 4, 4], [1, 2, 8])
    found = []
    for grid in (square, row, square):
        batch = together([prompt("qwen2_5_vl", (3, "a", 4), 1)])
        found.append(vision_flops(made, {**batch, "image_grid_thw": torch.tensor([grid])}))
    assert found[0] == found[2] != found[1]


def test_the_tower_runs_once_for_pictures_of_one_shape_and_leaves_no_trace() -> None:
    made = build("internvl", "sdpa")
    runs: list[Any] = []
    made.model.vision_tower.register_forward_hook(lambda *_: runs.append(1))
    before = [len(m._forward_pre_hooks) for m in made.modules()]
    batches = [
        together([prompt("internvl", (3, "a", words), seed)])
        for seed, words in ((1, 2), (2, 5), (3, 9))
    ]
    assert len({vision_flops(made, batch) for batch in batches}) == 1 == len(runs)
    assert [len(m._forward_pre_hooks) for m in made.modules()] == before
    assert vision_flops(made, {"input_ids": torch.ones(1, 3).long()}) == 0
    assert vision_flops(
        made, together([prompt("internvl", (3, "a", 1, "a", 1), 1)])
    ) == 2 * vision_flops(made, batches[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_command_cost_knows_every_family(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    FAMILIES[name].config().save_pretrained(tmp_path)
    given = ["cost", str(tmp_path), "--method", "fastv:layer=2,keep=0.5", "--json"]
    assert run([*given, "--visual-tokens", "16", "--image-size", "16x16"]) == 0
    assert '"ratio"' in capsys.readouterr().out
    if name in LIVE_ONLY:
        assert run([*given, "--image-size", "16x16"]) == 2
        assert "take --visual-tokens instead and leave the tower out" in " ".join(
            capsys.readouterr().err.split()
        )


def test_a_tower_on_flash_attention_is_counted_on_sdpa_and_put_back() -> None:
    """Whose kernels the counter cannot see (and which are not even here)."""
    made, batch = build("qwen2_5_vl", "sdpa"), inputs("qwen2_5_vl")
    tower = made.model.visual.config
    tower._attn_implementation = "flash_attention_2"
    assert vision_flops(made, batch) == vision_flops(model("qwen2_5_vl"), batch)
    assert tower._attn_implementation == "flash_attention_2"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("gemma4", "has matrices outside of its layers (per_layer_model_projection)"),
        ("mllama", "MllamaCrossAttentionDecoderLayer) have no self_attn.q_proj"),
        ("blip-2", "which has no `layers`"),
    ],
)
def test_decoders_whose_cost_is_not_known_are_refused_in_one_line(
    kind: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    CONFIG_MAPPING[kind]().save_pretrained(tmp_path)
    assert run(["cost", str(tmp_path), "--visual-tokens", "16"]) == 2
    said = capsys.readouterr().err.strip()
    assert reason in said and said.startswith("error: ") and "\n" not in said


def test_no_device_gains_more_than_the_cap_of_a_mixture_whose_layers_differ() -> None:
    """The roofline of devices between slow and fast memory, against the cap that holds on any."""
    config = FAMILIES["glm4v_moe"].config()
    sizes, asked = (
        architecture(config, "float32"),
        Request(text=8, visual=400, new_tokens=3, batch=2),
    )
    assert len(set(sizes.shapes.layers)) == 2
    kept = [400.0, 4.0, 4.0, 4.0]
    most = bench.caps(sizes, asked, 0.0, kept, kept)
    for bandwidth in range(6, 16):
        device = replace(DEVICES["a100"], flops=1e12, bandwidth=10.0**bandwidth)
        found = limits.caps(sizes, device, asked, kept)
        assert 1 < found.prefill <= most["first"] * (1 + 1e-9) and 1 < found.decode <= most[
            "further"
        ] * (1 + 1e-9)


class Words:
    """All that a row needs of a processor."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return " ".join(map(str, ids))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_rows_of_generate_know_every_family(name: str) -> None:
    """What `foveate generate` does once a processor has done its part."""
    made, batch = model(name, FAMILIES[name].backends[0]), inputs(name)
    table = comparison.rows_of(["fastv:layer=2,keep=0.25"])
    comparison.run(Loaded(made, Words()), [batch], table, 2, 1, lambda: None)
    plain, pruned = table
    ratio = pruned.cost.ratio(plain.cost)
    assert plain.cost.tower == pruned.cost.tower == vision_flops(made, batch) > 0
    assert (
        ratio["tower"] == 1
        and ratio["flops"] < 1
        and ratio["prefill"] < 1
        and pruned.kept < plain.kept == 1
    )


@pytest.mark.parametrize(
    "name", ["qwen3_vl", "glm4v_moe", "llava_next_video", "llava_onevision", "gemma3", "smolvlm"]
)
def test_bench_runs_where_the_closed_form_is_known(name: str, tmp_path: Path) -> None:
    FAMILIES[name].config().save_pretrained(tmp_path)
    given = [
        "bench",
        "--shape",
        str(tmp_path / "config.json"),
        "--method",
        "random:layer=0,keep=0.5",
        "--repeats",
        "1",
    ]
    given += ["--image-size", "32x16", "--prompt-tokens", "12", "--output-tokens", "2"]
    assert run(given) == 0


def test_a_model_without_a_language_model_inside_is_refused() -> None:
    with pytest.raises(ValueError, match="has no visual tokens to keep"):
        anatomy_of(nn.Linear(2, 2))
    assert anatomy_of(model("internvl")).depth == 4
