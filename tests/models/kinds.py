"""A small configuration of each kind of tower, with its pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Gemma3Config,
    InternVLConfig,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    SmolVLMConfig,
)

from models.tiny import FAMILIES, SIDE

TEXT = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
}  # fmt: skip


WIDE, HIGH = (
    72,
    40,
)  # pixels: 9 x 5 merged patches of 8, so that windows of 2 x 2 are cut off at the rim


SPECIAL = {
    "image_token_id": 9,
    "vision_start_token_id": 7,
    "vision_end_token_id": 6,
    "video_token_id": 8,
}


MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}


def qwen2_5_vl() -> Any:
    vision = {
        "depth": 3, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4,
        "spatial_merge_size": 2, "window_size": 16, "fullatt_block_indexes": [1],
    }  # fmt: skip
    text = {k: v for k, v in TEXT.items() if k != "head_dim"} | {"rope_parameters": MROPE}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **SPECIAL)


def qwen2_vl() -> Any:
    vision = {
        "depth": 2,
        "embed_dim": 16,
        "hidden_size": 32,
        "num_heads": 2,
        "patch_size": 4,
        "mlp_ratio": 2,
    }
    text = {k: v for k, v in TEXT.items() if k != "head_dim"} | {"rope_parameters": MROPE}
    return Qwen2VLConfig(text_config=text, vision_config=vision, **SPECIAL)


def internvl() -> Any:
    vision = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": [SIDE, SIDE], "patch_size": [4, 4],
    }  # fmt: skip
    return InternVLConfig(
        text_config={"model_type": "llama", **TEXT}, vision_config=vision, downsample_ratio=0.5
    )


def siglip(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": SIDE, "patch_size": 4, **more,
    }  # fmt: skip


def gemma3() -> Any:
    vision = siglip(model_type="siglip_vision_model", vision_use_head=False)
    return Gemma3Config(
        text_config=TEXT, vision_config=vision, mm_tokens_per_image=4, image_token_index=9
    )


def smolvlm() -> Any:
    return SmolVLMConfig(
        text_config={"model_type": "llama", **TEXT}, vision_config=siglip(), scale_factor=2
    )


def _qwen_pixels() -> dict[str, Tensor]:
    grid = torch.tensor([[1, HIGH // 4, WIDE // 4]])
    return {"pixel_values": torch.randn(int(grid.prod()), 3 * 2 * 4 * 4), "image_grid_thw": grid}


def _plain_pixels() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(1, 3, SIDE, SIDE)}


def _tiled_pixels() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(1, 1, 3, SIDE, SIDE)}


def _next_pixels() -> dict[str, Tensor]:
    return {
        "pixel_values": torch.randn(1, 3, 3, SIDE, SIDE),
        "image_sizes": torch.tensor([[SIDE, 2 * SIDE - 3]]),
    }


KINDS: dict[str, tuple[Callable[[], Any], Callable[[], dict[str, Tensor]], tuple[int, int]]] = {
    "llava": (FAMILIES["llava"], _plain_pixels, (SIDE, SIDE)),
    "vipllava": (FAMILIES["vipllava"], _plain_pixels, (SIDE, SIDE)),
    "llava_next": (FAMILIES["llava_next"], _next_pixels, (2 * SIDE - 3, SIDE)),
    "qwen2_5_vl": (qwen2_5_vl, _qwen_pixels, (WIDE, HIGH)),
    "qwen2_vl": (qwen2_vl, _qwen_pixels, (WIDE, HIGH)),
    "internvl": (internvl, _plain_pixels, (SIDE, SIDE)),
    "gemma3": (gemma3, _plain_pixels, (SIDE, SIDE)),
    "smolvlm": (smolvlm, _tiled_pixels, (SIDE, SIDE)),
}
