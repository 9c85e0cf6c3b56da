"""What a configuration alone tells, against torch's own counter on real (tiny) models of each kind of family."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
)

from foveate.cost.architecture import architecture
from foveate.cost.configurations import SHAPES, config_of
from foveate.cost.flops import cost_of_counts, shapes
from foveate.cost.pictures import picture
from models.kinds import (
    KINDS,
)
from models.tiny import FAMILIES
from oracles.counting import counted


@pytest.mark.parametrize("kind", KINDS)
def test_tower_and_decoder_cost_what_torch_counts(kind: str) -> None:
    make, pixels, size = KINDS[kind]
    found, seen = architecture(make()), picture(make(), size)
    torch.manual_seed(0)
    made = AutoModelForImageTextToText.from_config(make()).eval()
    given = pixels()
    assert counted(lambda: made.get_image_features(**given)) == found.vision_flops([seen])
    with torch.no_grad():
        features = made.get_image_features(**given)
    out = getattr(features, "pooler_output", features)
    assert sum(f.reshape(-1, f.shape[-1]).shape[0] for f in out) == seen.tokens
    words = torch.randint(10, 60, (1, 12))
    text = cost_of_counts(found.shapes, [0] * len(found.shapes.layers), text=12)
    heads = 2 * found.shapes.head * 12
    assert counted(lambda: made(input_ids=words)) == text.prefill + heads


@pytest.mark.parametrize("family", FAMILIES)
def test_a_configuration_says_what_the_weights_say(family: str) -> None:
    made = AutoModelForImageTextToText.from_config(FAMILIES[family]())
    ours, theirs = architecture(FAMILIES[family](), dtype="float32"), shapes(made)
    assert (
        ours.shapes.layers == theirs.layers
        and ours.shapes.head == theirs.head
        and ours.shapes.bytes == 4
    )


def test_known_shapes_have_the_sizes_they_are_named_by() -> None:
    small = {"smol-135m": 0.135e9, "smol": 0.135e9, "tiny-20m": 0.0204e9}
    for name, weights in small.items():
        assert architecture(config_of(name)).weights == pytest.approx(weights, rel=0.02)
    found = architecture(config_of("llava-1.5-7b"))
    assert found.weights + found.words == pytest.approx(6.74e9, rel=0.01)  # Llama-2-7B
    assert found.vision == pytest.approx(0.325e9, rel=0.02)  # CLIP ViT-L/14-336 and two matrices
    assert picture(config_of("llava-1.5-7b")).tokens == 576
    assert (
        picture(config_of("llava-next-7b"), (672, 672)).tokens == 2928
    )  # as LLaVA-NeXT's paper and processor have it
    assert picture(config_of("qwen2.5-vl-7b"), (448, 448)).tokens == 256
    assert picture(config_of("internvl2-8b"), tiles=7).tokens == 7 * 256
    assert set(SHAPES) >= {"llava-1.5-13b", "smol"}
