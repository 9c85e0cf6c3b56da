"""ONE ENTRY PER FAMILY: a tiny random-weight model of the real config class, and its pictures in a prompt.

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
        side: of the square grid that an image's tokens form, if all do.
    """

    config: Callable[[], Any]
    picture: Callable[[str, int], Pixels]
    ids: Callable[[str, int], list[int]] = lambda kind, count: [VIDEO if kind == "v" else IMAGE] * count
    kinds: str = "a"
    extras: Callable[[Tensor], Pixels] = lambda ids: {}
    join: Callable[[list[list[Pixels]]], Pixels] = field(default_factory=lambda: concatenated)
    backends: tuple[str, ...] = ("sdpa", "eager")
    side: int | None = None


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


def stamped(kind: str, count: int) -> list[int]:
    """Qwen3-VL: two frames of a video stand apart, each after a timestamp."""
    if kind != "v":
        return framed(kind, count)
    return [5, START, *[VIDEO] * (count // 2), END, 6, START, *[VIDEO] * (count // 2), END]


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
    "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 2],
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


def llava_next_video() -> Any:
    return tf.LlavaNextVideoConfig(
        vision_config=tf.CLIPVisionConfig(**CLIP), text_config=text(), **SPECIAL, video_token_id=VIDEO,
        vision_feature_layer=-1, image_grid_pinpoints=[[16, 32], [32, 16]],
    )  # fmt: skip


def video_llava() -> Any:
    return tf.VideoLlavaConfig(
        vision_config=tf.CLIPVisionConfig(**CLIP), text_config=text(), **SPECIAL, video_token_id=VIDEO,
        vision_feature_layer=-1,
    )  # fmt: skip


def eight_frames(kind: str, seed: int) -> Pixels:
    if kind == "v":
        return {"pixel_values_videos": noise(seed, 1, 8, 3, 16, 16)}
    return {"pixel_values_images": noise(seed, 1, 3, 16, 16)}


def idefics2() -> Any:
    tower = {**SIGLIP, "model_type": "idefics2_vision"}
    perceiver = {
        "hidden_size": 32, "resampler_n_latents": 6, "resampler_depth": 1, "resampler_n_heads": 2,
        "num_key_value_heads": 1, "resampler_head_dim": 8,
    }  # fmt: skip
    return tf.Idefics2Config(
        vision_config=tower, perceiver_config=perceiver, text_config=text("Mistral", sliding_window=None), **SPECIAL
    )


GLM = {
    "depth": 2, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "patch_size": 4, "intermediate_size": 24,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "image_size": 16,
}  # fmt: skip
GLM_ROPE = {"rope_parameters": {**MROPE["rope_parameters"], "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}}
GLM_IDS = {
    **SPECIAL, "video_token_id": VIDEO, "image_start_token_id": START, "image_end_token_id": END,
    "video_start_token_id": 58, "video_end_token_id": 57,
}  # fmt: skip


def glm4v() -> Any:
    return tf.Glm4vConfig(vision_config=dict(GLM), text_config={**TEXT, **GLM_ROPE}, **GLM_IDS)


def glm46v() -> Any:
    return tf.Glm46VConfig(
        vision_config={**GLM, "model_type": "glm4v_vision"},
        text_config={**TEXT, **GLM_ROPE, "model_type": "glm4v_text"}, **GLM_IDS,
    )  # fmt: skip


def glm4v_moe() -> Any:
    moe = {
        "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
        "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
    }  # fmt: skip
    return tf.Glm4vMoeConfig(vision_config=dict(GLM), text_config={**TEXT, **GLM_ROPE, **moe}, **GLM_IDS)


def glm_ocr() -> Any:
    return tf.GlmOcrConfig(vision_config=dict(GLM), text_config={**TEXT, **GLM_ROPE}, **GLM_IDS)


def in_frames(kind: str, count: int) -> list[int]:
    """GLM: frames of a video have the image's id, each between image markers. (No images beside videos.)"""
    return [58, *[START, *[IMAGE] * (count // 2), END, 5] * 2, 57]


def in_video(ids: Tensor) -> Pixels:
    return {"mm_token_type_ids": 2 * (ids == IMAGE).int()}


def ovis2() -> Any:
    tower = {
        **SIGLIP, "vocab_size": 24, "num_visual_indicator_tokens": 5, "hidden_stride": 2,
    }  # fmt: skip
    return tf.Ovis2Config(
        vision_config=tower, text_config=text("Qwen2"), **SPECIAL, visual_indicator_token_ids=[58, 59, 60, 61, 62],
        vocab_size=64, hidden_size=32,
    )  # fmt: skip


def aria() -> Any:
    language = text("AriaText", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1)
    tower = {**SIGLIP, "model_type": "idefics3_vision"}
    return tf.AriaConfig(
        vision_config=tower, text_config=language, **SPECIAL, projector_patch_to_query_dict={16: 6},
        vision_feature_layer=-1,
    )  # fmt: skip


def got_ocr2() -> Any:
    tower = {
        "hidden_size": 16, "output_channels": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64,
        "patch_size": 4, "window_size": 2, "global_attn_indexes": [1], "mlp_dim": 24,
    }  # fmt: skip
    return tf.GotOcr2Config(vision_config=tower, text_config=text("Qwen2"), **SPECIAL)


def deepseek_vl() -> Any:
    return tf.DeepseekVLConfig(vision_config=tf.SiglipVisionConfig(**SIGLIP), text_config=text(), **SPECIAL)


def janus() -> Any:
    tower = {**SIGLIP, "projection_dim": 32, "depth": 2, "num_image_tokens": 16}
    return tf.JanusConfig(
        vision_config=tower, text_config=text(), **SPECIAL,
        vq_config={"embed_dim": 4, "num_embeddings": 16, "base_channels": 32, "num_patches": 4, "projection_dim": 32,
                   "channel_multiplier": [1, 1], "image_token_embed_dim": 32},
    )  # fmt: skip


def lighton_ocr() -> Any:
    tower = tf.PixtralVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
    )
    return tf.LightOnOcrConfig(vision_config=tower, text_config=text("Qwen3"), **SPECIAL, spatial_merge_size=2)


def qianfan_ocr() -> Any:
    tower = {**SIGLIP, "image_size": [16, 16], "patch_size": [4, 4]}
    return tf.QianfanOCRConfig(vision_config=tower, text_config=text("Qwen3"), **SPECIAL, image_seq_length=4)


def cohere2() -> Any:
    return text("Cohere2", sliding_window=6, layer_types=["sliding_attention", "full_attention"] * 2, logit_scale=1.0)


def aya_vision() -> Any:
    return tf.AyaVisionConfig(
        vision_config=tf.SiglipVisionConfig(**SIGLIP), text_config=cohere2(), **SPECIAL, vision_feature_layer=-1
    )


def cohere2_vision() -> Any:
    return tf.Cohere2VisionConfig(
        vision_config=tf.SiglipVisionConfig(**SIGLIP), text_config=cohere2(), **SPECIAL,
        alignment_intermediate_size=32,
    )  # fmt: skip


def perception_lm() -> Any:
    """Its own tower is timm's, which this environment lacks; what the decoder is given has the same form."""
    return tf.PerceptionLMConfig(
        vision_config=tf.CLIPVisionConfig(**CLIP, model_args={"embed_dim": 16}),
        text_config=text(),
        **SPECIAL,
        video_token_id=VIDEO,
    )


def pooled_tiles(kind: str, seed: int) -> Pixels:
    name = "pixel_values" + "_videos" * (kind == "v")
    return {name: noise(seed, 1, 2, 3, 16, 16)}


def fast_vlm() -> Any:
    """Its own tower is timm's, which this environment lacks; any that gives a map of features will do."""
    tower = tf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2, hidden_size=16)
    return tf.FastVlmConfig(vision_config=tower, text_config=text("Qwen2"), **SPECIAL)


def ministral3() -> Any:
    """Queries that grow with their position, here from the fourth token on."""
    rope = {
        "rope_type": "default", "rope_theta": 10000.0, "llama_4_scaling_beta": 0.5,
        "original_max_position_embeddings": 4,
    }  # fmt: skip
    made = mistral3()
    made.text_config = text("Ministral3", rope_parameters=rope, sliding_window=None)
    return made


def video_llama_3() -> Any:
    tower = {
        "model_type": "video_llama_3_vision", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "patch_size": 4,
    }  # fmt: skip
    return tf.VideoLlama3Config(vision_config=tower, text_config=text("Qwen2"), **SPECIAL, video_token_id=VIDEO)


def merged(kind: str, seed: int) -> Pixels:
    """VideoLLaMA 3: patches with their grid, and by how much each picture is merged."""
    found = patches(48)(kind, seed)
    name = "video" if kind == "v" else "image"
    found[f"{name}_merge_sizes"] = torch.tensor([2])
    return found


FAMILIES: dict[str, Family] = {
    "qwen2_vl": Family(qwen2_vl, patches(96), kinds="abv", extras=modality),
    "qwen2_5_vl": Family(qwen2_5_vl, patches(96), kinds="abv", extras=modality),
    "llava_onevision": Family(llava_onevision, tiles, kinds="abv"),
    "internvl": Family(internvl, square(), framed),
    "qwen3_vl": Family(qwen3_vl, patches(96), stamped, kinds="abv", extras=modality),
    "qwen3_vl_moe": Family(qwen3_vl_moe, patches(96), stamped, kinds="abv", extras=modality),
    "idefics3": Family(idefics3, square(), framed, join=per_sample, side=2),
    "smolvlm": Family(smolvlm, square(), framed, join=per_sample, side=2),
    "mistral3": Family(mistral3, sized, in_rows, kinds="ab"),
    "gemma3": Family(gemma3, square(), framed, extras=lambda ids: {"token_type_ids": (ids == IMAGE).long()}, side=2),
    "paligemma": Family(paligemma(1), square(), extras=lambda ids: {"token_type_ids": ids * 0}, side=4),
    "paligemma2": Family(
        paligemma(2), square(), extras=lambda ids: {"token_type_ids": ids * 0}, backends=("eager",), side=4
    ),
    "llava_pixtral": Family(llava_pixtral, sized, in_rows, kinds="ab"),
    "llava_next": Family(llava_next, tiles, kinds="ab"),
    "llava_next_video": Family(llava_next_video, tiles, kinds="abv"),
    "video_llava": Family(video_llava, eight_frames, kinds="av"),
    "idefics2": Family(idefics2, square(), framed, join=per_sample),
    "glm4v": Family(glm4v, patches(96), framed, kinds="ab", extras=modality),
    "glm46v": Family(glm46v, patches(96), framed, kinds="ab", extras=modality),
    "glm4v_moe": Family(glm4v_moe, patches(96), framed, kinds="ab", extras=modality),
    "glm_ocr": Family(glm_ocr, patches(96), framed, kinds="ab", extras=modality),
    "glm4v_video": Family(glm4v, patches(96), in_frames, kinds="v", extras=in_video),
    "ovis2": Family(ovis2, square(), framed),
    "aria": Family(aria, square()),
    "got_ocr2": Family(got_ocr2, square(64), framed),
    "deepseek_vl": Family(deepseek_vl, square()),
    "janus": Family(janus, square(), framed),
    "lighton_ocr": Family(lighton_ocr, sized, kinds="ab"),
    "qianfan_ocr": Family(qianfan_ocr, square(), framed),
    "aya_vision": Family(aya_vision, square(), framed),
    "cohere2_vision": Family(cohere2_vision, square(), framed),
    "perception_lm": Family(perception_lm, pooled_tiles, kinds="av"),
    "fast_vlm": Family(fast_vlm, square()),
    "ministral3": Family(ministral3, sized, in_rows, kinds="ab"),
    "video_llama_3": Family(video_llama_3, merged, kinds="abv"),
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
    made.set_attn_implementation({"text_config": backend})
    return made


@cache
def model(name: str, backend: str = "sdpa") -> Any:
    return build(name, backend)


@cache
def judge(name: str) -> Any:
    """The same weights in a model of its own: some keep state between calls."""
    return build(name, "eager")
