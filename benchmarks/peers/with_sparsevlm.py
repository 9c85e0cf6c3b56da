"""The PyPI package sparsevlm (not by SparseVLM's authors): Qwen2-VL and Qwen2.5-VL, one sample, a picture in front.

Its decoder gets the request's sizes inside a Qwen2.5-VL with a tower of one small layer, and the picture comes first,
because the package takes positions 0 to n for it.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from common import Asked, Done, Runs, Watch, build, generation, serve, words
from sparsevlm import apply_sparsevlm, remove_hooks, reset_n_vis, sparsevlm_generate
from torch import Tensor


def shape(asked: Asked) -> dict[str, Any]:
    """A Qwen2.5-VL whose decoder is of the request's sizes."""
    text = asked.config["text_config"]
    names = (
        *(
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
        ),
        *("vocab_size", "max_position_embeddings"),
    )
    half = text["hidden_size"] // text["num_attention_heads"] // 2
    time = half - 2 * (half * 3 // 8)
    rope = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [time, half * 3 // 8, half * 3 // 8],
    }
    return {
        "model_type": "qwen2_5_vl",
        **{"image_token_id": 9, "video_token_id": 8, "vision_start_token_id": 7, "vision_end_token_id": 6},
        "text_config": {"model_type": "qwen2_5_vl_text", "rope_parameters": rope, **{n: text[n] for n in names}},
        "vision_config": {
            "model_type": "qwen2_5_vl", "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2,
            "out_hidden_size": text["hidden_size"], "patch_size": 14, "spatial_merge_size": 2,
            "temporal_patch_size": 2, "window_size": 112, "fullatt_block_indexes": [0],
        },
    }  # fmt: skip


def picture_first(asked: Asked, model: Any) -> dict[str, Tensor]:
    """The picture's placeholders, then text."""
    side = math.isqrt(asked.visual)
    if side**2 != asked.visual:
        raise ValueError(f"{asked.visual} visual tokens are no square picture")
    image = torch.full((asked.batch, asked.visual), 9, device=asked.device)
    ids = torch.cat([image, words(asked, asked.text, model.config.text_config.vocab_size)], 1)
    patches = torch.randn(
        asked.batch * 4 * asked.visual, 3 * 2 * 14**2, dtype=model.dtype, device=asked.device
    )
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == 9).int(),
        "pixel_values": patches,
        "image_grid_thw": torch.tensor(
            [[1, 2 * side, 2 * side]] * asked.batch, device=asked.device
        ),
    }


def contestants(asked: Asked) -> Runs:
    """Plain transformers twice, and the package's two ways in."""
    model = build(asked, shape(asked))
    given = picture_first(asked, model)
    plain = partial(generation, model, given, asked)

    def by_cache() -> Done:
        """Its `sparsevlm_generate`, which wants eager; the clock goes in through generate."""
        if asked.batch > 1:
            raise ValueError("sparsevlm_generate takes one sample at a time")
        model.set_attn_implementation("eager")
        watch = Watch(model.device)
        whole = model.generate
        model.generate = partial(
            whole, do_sample=False, streamer=watch, return_dict_in_generate=True
        )
        try:
            out = sparsevlm_generate(
                model,
                None,
                given,
                asked.visual,
                asked.kept,
                max_new_tokens=asked.new_tokens,
                device=asked.device,
            )
        finally:
            del model.generate
        held = [layer.keys.shape[-2] - asked.new_tokens for layer in out.past_key_values.layers]
        return (
            watch,
            out.sequences[0, 1:].tolist(),
            held,
        )  # it gives generate the last word again, then all are new

    def by_hooks() -> Done:
        """Its `apply_sparsevlm`, with the layers and the least count of the request."""
        state = apply_sparsevlm(
            model, n_vis=asked.visual, target_layers=[asked.layer - 1], min_keep=asked.kept
        )
        try:
            reset_n_vis(state, asked.visual)
            return plain("eager")
        finally:
            remove_hooks(state)

    return {
        "plain": plain,
        "plain again": plain,
        "sparsevlm, generate": by_cache,
        "sparsevlm, hooks": by_hooks,
    }


if __name__ == "__main__":
    serve(contestants, "sparsevlm")
