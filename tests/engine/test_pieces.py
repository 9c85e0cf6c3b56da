"""Prompts that come in pieces, as chunked prefill feeds them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate.core.method import Method
from foveate.methods import divprune, downsample, fastv, random, tome, visionzip
from models.families import model as family
from models.prompts import prompt, together
from models.tiny import Layout, batch, cache_in, held, model

EACH_IMAGE_ALONE = [
    divprune(keep=0.5),
    divprune(keep=0.5).weighted(weigh="nearest", merge="mean"),
    tome(keep=0.5),
    visionzip(keep=0.5),
]
ALL_IMAGES = [random(layer=0, keep=0.5), downsample(layer=1, keep=0.25)]  # share one budget
ONE, TWO = Layout(((4, 0, 3),)), Layout(((4, 0, 3, 0, 5),))
SPLIT = [
    *(
        (method, TWO, ends)
        for method in EACH_IMAGE_ALONE
        for ends in ([2], [4], [21, 23], [2, 22, 40])
    ),
    *((method, ONE, ends) for method in ALL_IMAGES for ends in ([2], [4], [21], [3, 22])),
]


@torch.no_grad()
def fed(made: Any, inputs: dict[str, Any], ends: list[int]) -> Tensor:
    """Logits of a prompt of one sample, fed in pieces that end at `ends`; pictures go with their placeholders."""
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    start, used, cache, logits = 0, 0, {}, []
    for end in [*ends, ids.shape[1]]:
        piece = ids[:, start:end]
        images = int((piece == made.config.image_token_id).sum()) // 16
        given = {"pixel_values": pixels[used : used + images]} if images else {}
        out = made(input_ids=piece, **given, **cache, use_cache=True)
        cache = held(cache_in(out))
        logits.append(out.logits)
        start, used = end, used + images
    return torch.cat(logits, 1)


@pytest.mark.parametrize(("method", "layout", "ends"), SPLIT)
def test_pieces_that_end_in_text_equal_the_whole(
    method: Method, layout: Layout, ends: list[int]
) -> None:
    made, inputs = model("llava"), batch("llava", layout).inputs
    with foveate.apply(made, method) as whole:
        want = fed(made, inputs, [])
    with foveate.apply(made, method) as pieces:
        got = fed(made, inputs, ends)
    torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-3)
    kept = whole.prefill()
    assert pieces.prefill(len(ends)) == kept and kept[-1] < [len(layout.samples[0]) // 2 * 16]


@pytest.mark.parametrize("method", [divprune(keep=0.5), fastv(layer=1, keep=0.5)])
def test_an_image_in_two_pieces_is_refused(method: Method) -> None:
    made = family("qwen3_vl")
    inputs = together([prompt("qwen3_vl", (3, "a", 5), 1)])
    ids, embeds = inputs["input_ids"], made.get_input_embeddings()(inputs["input_ids"])
    middle = int((ids[0] == made.config.image_token_id).nonzero()[1])
    with torch.no_grad(), foveate.apply(made, method):
        first = made(inputs_embeds=embeds[:, :middle], use_cache=True)
        with pytest.raises(ValueError, match="an image came in two pieces"):
            made(inputs_embeds=embeds[:, middle:], **held(cache_in(first)), use_cache=True)


def test_images_of_a_known_size_may_touch_where_a_piece_ends() -> None:
    """The newest token of a piece stays: its logits are asked for."""
    made, inputs = model("llava"), batch("llava", Layout(((2, 0, 0, 3),))).inputs
    with foveate.apply(made, divprune(keep=0.5)) as trace:
        fed(made, inputs, [18])
    assert trace.prefill(1) == [[8 + 1 + 8]] * 4
