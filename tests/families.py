"""ONE ENTRY PER FAMILY: a tiny random-weight model of the real config class, and what its pictures look like in a prompt.

Every family has pictures of two sizes ("a", "b") where it takes several, and videos ("v") where it takes any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import transformers as tf
from torch import Tensor

from tiny import IMAGE, PAD, TEXT

VIDEO, START, END, ROW = 62, 61, 60, 59
WORDS = 55  # ids from 3 to here are words
Pixels = dict[str, Tensor]
SIGLIP = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 4,
}  # fmt: skip
CLIP = {**SIGLIP, "projection_dim": 16}
SPECIAL = {"image_token_id": IMAGE}


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Family:
    """A family to be tested.

    Attributes:
        config: of the tiny model.
        picture: (kind, seed) -> what the model is given for it.
        ids: (kind, number of features) -> the tokens of the picture in a prompt.
        kinds: of pictures.
        extras: (ids) -> further inputs, one entry per token.
        join: puts the pictures of a batch together: per sample, a list.
        backends: attention implementations that the family's modules take.
    """

    config: Callable[[], Any]
    picture: Callable[[str, int], Pixels]
    ids: Callable[[str, int], list[int]] = lambda kind, count: [VIDEO if kind == "v" else IMAGE] * count
    kinds: str = "a"
    extras: Callable[[Tensor], Pixels] = lambda ids: {}
    join: Callable[[list[list[Pixels]]], Pixels] = field(default_factory=lambda: concatenated)
    touching: bool = False  # images that touch are one image


def concatenated(samples: list[list[Pixels]]) -> Pixels:
    """All pictures of the batch one after another, padded to the largest."""
    every = [pixels for sample in samples for pixels in sample]
    names = dict.fromkeys(name for pixels in every for name in pixels)
    found = {}
    for name in names:
        parts = [pixels[name] for pixels in every if name in pixels]
        largest = [max(p.shape[d] for p in parts) for d in range(1, parts[0].ndim)]
        found[name] = torch.cat([_grown(p, largest) for p in parts])
    return found


def _grown(values: Tensor, sizes: list[int]) -> Tensor:
    out = values.new_zeros(values.shape[0], *sizes)
    out[tuple(slice(0, s) for s in values.shape)] = values
    return out


def per_sample(samples: list[list[Pixels]]) -> Pixels:
    """Idefics: (B, most pictures, ...), filled with empty pictures."""
    most = max(len(s) for s in samples)
    shape = next(p["pixel_values"].shape[1:] for s in samples for p in s)
    out = torch.zeros(len(samples), most, *shape)
    for i, sample in enumerate(samples):
        for j, pixels in enumerate(sample):
            out[i, j] = pixels["pixel_values"][0]
    return {"pixel_values": out}


def square(side: int = 16) -> Callable[[str, int], Pixels]:
    return lambda kind, seed: {"pixel_values": noise(seed, 1, 3, side, side)}


def framed(kind: str, count: int) -> list[int]:
    return [START, *[IMAGE] * count, END]


def tiles(kind: str, seed: int) -> Pixels:
    """LLaVA-NeXT and -OneVision: an overview and two tiles; the size says how much of them is padding."""
    if kind == "v":
        return {"pixel_values_videos": noise(seed, 1, 2, 3, 16, 16)}
    size = [16, 32] if kind == "a" else [28, 16]
    return {"pixel_values": noise(seed, 1, 3, 3, 16, 16), "image_sizes": torch.tensor([size])}


def sized(kind: str, seed: int) -> Pixels:
    """Pixtral: pictures of any size, padded to the largest."""
    h, w = (16, 16) if kind == "a" else (8, 16)
    return {"pixel_values": noise(seed, 1, 3, h, w), "image_sizes": torch.tensor([[h, w]])}


def patches(depth: int, merge: int = 2) -> Callable[[str, int], Pixels]:
    """Qwen and GLM: rows of flattened patches, and the grid (time, height, width) that they form."""

    def picture(kind: str, seed: int) -> Pixels:
        grid = {"a": (1, 2 * merge, 2 * merge), "b": (1, merge, 3 * merge), "v": (2, merge, 2 * merge)}[kind]
        count = grid[0] * grid[1] * grid[2]
        name = "video" if kind == "v" else "image"
        pixels = noise(seed, count, depth)
        return {"pixel_values" + "_videos" * (kind == "v"): pixels, f"{name}_grid_thw": torch.tensor([grid])}

    return picture


def modality(ids: Tensor) -> Pixels:
    return {"mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}


def text(kind: str = "Llama", **more: Any) -> Any:
    return getattr(tf, f"{kind}Config")(**{**TEXT, **more})


MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
QWEN_TEXT = {k: v for k, v in TEXT.items() if k != "head_dim"} | MROPE
QWEN_IDS = {**SPECIAL, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}


def llava_pixtral() -> Any:
    tower = tf.PixtralVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
    )
    return tf.LlavaConfig(
        vision_config=tower, text_config=text("Mistral", sliding_window=None), vision_feature_layer=-1,
        vision_feature_select_strategy="full", **SPECIAL,
    )  # fmt: skip


def llava_next() -> Any:
    return tf.LlavaNextConfig(
        vision_config=tf.CLIPVisionConfig(**CLIP), text_config=text("Mistral", sliding_window=9), **SPECIAL,
        vision_feature_layer=-1, image_grid_pinpoints=[[16, 32], [32, 16]],
    )  # fmt: skip


def llava_onevision() -> Any:
    return tf.LlavaOnevisionConfig(
        vision_config=tf.SiglipVisionConfig(**SIGLIP), text_config=text("Qwen2"), **SPECIAL, video_token_id=VIDEO,
        vision_feature_layer=-1, image_grid_pinpoints=[[16, 32], [32, 16]],
    )  # fmt: skip


def internvl() -> Any:
    tower = tf.InternVLVisionConfig(**{**SIGLIP, "image_size": [16, 16], "patch_size": [4, 4]})
    return tf.InternVLConfig(vision_config=tower, text_config=text("Qwen2"), **SPECIAL, image_seq_length=4)


def qwen2_vl() -> Any:
    tower = {
        "depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2,
        "spatial_merge_size": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    return tf.Qwen2VLConfig(vision_config=tower, text_config=dict(QWEN_TEXT), **QWEN_IDS)


def qwen2_5_vl() -> Any:
    tower = {
        "depth": 2, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "patch_size": 4, "intermediate_size": 24,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 16, "fullatt_block_indexes": [1],
    }  # fmt: skip
    return tf.Qwen2_5_VLConfig(vision_config=tower, text_config=dict(QWEN_TEXT), **QWEN_IDS)


QWEN3_TOWER = {
    "depth": 3, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "patch_size": 4, "intermediate_size": 24,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 2],
}  # fmt: skip


def qwen3_vl() -> Any:
    return tf.Qwen3VLConfig(vision_config=dict(QWEN3_TOWER), text_config={**TEXT, **MROPE}, **QWEN_IDS)


def qwen3_vl_moe() -> Any:
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    return tf.Qwen3VLMoeConfig(vision_config=dict(QWEN3_TOWER), text_config={**TEXT, **MROPE, **moe}, **QWEN_IDS)


def idefics3() -> Any:
    tower = {**SIGLIP, "model_type": "idefics3_vision"}
    return tf.Idefics3Config(vision_config=tower, text_config=text(), **SPECIAL, scale_factor=2, pad_token_id=PAD)


def smolvlm() -> Any:
    tower = {**SIGLIP, "model_type": "smolvlm_vision"}
    return tf.SmolVLMConfig(vision_config=tower, text_config=text(), **SPECIAL, scale_factor=2, pad_token_id=PAD)


def mistral3() -> Any:
    tower = tf.PixtralVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
    )
    return tf.Mistral3Config(
        vision_config=tower, text_config=text("Mistral", sliding_window=None), **SPECIAL, spatial_merge_size=2
    )


def in_rows(kind: str, count: int) -> list[int]:
    """Pixtral's layout: a break after each row of two tokens, an end in place of the last."""
    found: list[int] = []
    for _ in range(count // 2):
        found += [IMAGE, IMAGE, ROW]
    return [*found[:-1], END]


def gemma3() -> Any:
    language = text(
        "Gemma3Text", sliding_window=6, layer_types=["sliding_attention", "full_attention"] * 2, query_pre_attn_scalar=8
    )
    return tf.Gemma3Config(
        vision_config=tf.SiglipVisionConfig(**SIGLIP), text_config=language, **SPECIAL, boi_token_id=START,
        eoi_token_id=END, mm_tokens_per_image=4,
    )  # fmt: skip


def paligemma(version: int) -> Callable[[], Any]:
    def config() -> Any:
        # attention by layers that see all: PaliGemma 2's windows are far longer than its prompts
        language = text("Gemma") if version == 1 else text("Gemma2", sliding_window=64, query_pre_attn_scalar=8)
        return tf.PaliGemmaConfig(
            vision_config=tf.SiglipVisionConfig(**SIGLIP), text_config=language, **SPECIAL, projection_dim=32,
            hidden_size=32,
        )  # fmt: skip

    return config


FAMILIES: dict[str, Family] = {
    "qwen2_vl": Family(qwen2_vl, patches(96), kinds="abv", extras=modality, touching=True),
    "qwen2_5_vl": Family(qwen2_5_vl, patches(96), kinds="abv", extras=modality, touching=True),
    "llava_onevision": Family(llava_onevision, tiles, kinds="abv", touching=True),
    "internvl": Family(internvl, square(), framed, touching=True),
    "qwen3_vl": Family(qwen3_vl, patches(96), kinds="abv", extras=modality, touching=True),
    "qwen3_vl_moe": Family(qwen3_vl_moe, patches(96), kinds="abv", extras=modality, touching=True),
    "idefics3": Family(idefics3, square(), framed, join=per_sample, touching=True),
    "smolvlm": Family(smolvlm, square(), framed, join=per_sample, touching=True),
    "mistral3": Family(mistral3, sized, in_rows, kinds="ab", touching=True),
    "gemma3": Family(gemma3, square(), framed, extras=lambda ids: {"token_type_ids": (ids == IMAGE).long()}),
    "paligemma": Family(paligemma(1), square(), extras=lambda ids: {"token_type_ids": ids * 0}),
    "paligemma2": Family(paligemma(2), square(), extras=lambda ids: {"token_type_ids": ids * 0}),
    "llava_pixtral": Family(llava_pixtral, sized, in_rows, kinds="ab", touching=True),
    "llava_next": Family(llava_next, tiles, kinds="ab", touching=True),
}


def build(name: str, backend: str) -> Any:
    """A model whose attention is far from uniform, so that what is dropped matters."""
    torch.manual_seed(5)
    made = tf.AutoModelForImageTextToText.from_config(FAMILIES[name].config())
    with torch.no_grad():
        for part, p in made.named_parameters():
            if p.ndim > 1 and "visual.pos" not in part:
                p.mul_(8 if "q_proj" in part or "k_proj" in part or "embed_tokens" in part else 4)
    made.generation_config.eos_token_id = None
    made.generation_config.pad_token_id = PAD
    made = made.eval()
    made.set_attn_implementation(backend)
    return made


@cache
def model(name: str, backend: str = "sdpa") -> Any:
    return build(name, backend)


@cache
def judge(name: str) -> Any:
    """The same weights in a model of its own: some keep state between calls."""
    return build(name, "eager")
