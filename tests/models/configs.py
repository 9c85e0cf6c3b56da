"""A tiny configuration of every family's real config class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as tf

from models.tiny import END, IMAGE, PAD, START, TEXT, VIDEO

SIGLIP = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 4,
}  # fmt: skip
CLIP = {**SIGLIP, "projection_dim": 16}
SPECIAL = {"image_token_id": IMAGE}


def text(kind: str = "Llama", **more: Any) -> Any:
    return getattr(tf, f"{kind}Config")(**{**TEXT, **more})


MROPE = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
}
QWEN_TEXT = {k: v for k, v in TEXT.items() if k != "head_dim"} | MROPE
QWEN_IDS = {
    **SPECIAL,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}


def llava_pixtral() -> Any:
    tower = tf.PixtralVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
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
    return tf.InternVLConfig(
        vision_config=tower, text_config=text("Qwen2"), **SPECIAL, image_seq_length=4
    )


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
    return tf.Qwen3VLConfig(
        vision_config=dict(QWEN3_TOWER), text_config={**TEXT, **MROPE}, **QWEN_IDS
    )


def qwen3_vl_moe() -> Any:
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    return tf.Qwen3VLMoeConfig(
        vision_config=dict(QWEN3_TOWER), text_config={**TEXT, **MROPE, **moe}, **QWEN_IDS
    )


def idefics3() -> Any:
    tower = {**SIGLIP, "model_type": "idefics3_vision"}
    return tf.Idefics3Config(
        vision_config=tower, text_config=text(), **SPECIAL, scale_factor=2, pad_token_id=PAD
    )


def smolvlm() -> Any:
    tower = {**SIGLIP, "model_type": "smolvlm_vision"}
    return tf.SmolVLMConfig(
        vision_config=tower, text_config=text(), **SPECIAL, scale_factor=2, pad_token_id=PAD
    )


def mistral3() -> Any:
    tower = tf.PixtralVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
    )
    return tf.Mistral3Config(
        vision_config=tower,
        text_config=text("Mistral", sliding_window=None),
        **SPECIAL,
        spatial_merge_size=2,
    )


def gemma3() -> Any:
    language = text(
        "Gemma3Text",
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"] * 2,
        query_pre_attn_scalar=8,
    )
    return tf.Gemma3Config(
        vision_config=tf.SiglipVisionConfig(**SIGLIP), text_config=language, **SPECIAL, boi_token_id=START,
        eoi_token_id=END, mm_tokens_per_image=4,
    )  # fmt: skip


def paligemma(version: int) -> Callable[[], Any]:
    def config() -> Any:
        # attention by layers that see all: PaliGemma 2's windows are far longer than its prompts
        language = (
            text("Gemma")
            if version == 1
            else text("Gemma2", sliding_window=64, query_pre_attn_scalar=8)
        )
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


def idefics2() -> Any:
    tower = {**SIGLIP, "model_type": "idefics2_vision"}
    perceiver = {
        "hidden_size": 32, "resampler_n_latents": 6, "resampler_depth": 1, "resampler_n_heads": 2,
        "num_key_value_heads": 1, "resampler_head_dim": 8,
    }  # fmt: skip
    return tf.Idefics2Config(
        vision_config=tower,
        perceiver_config=perceiver,
        text_config=text("Mistral", sliding_window=None),
        **SPECIAL,
    )


GLM = {
    "depth": 2, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "patch_size": 4, "intermediate_size": 24,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "image_size": 16,
}  # fmt: skip
GLM_ROPE = {
    "rope_parameters": {
        **MROPE["rope_parameters"],
        "partial_rotary_factor": 0.5,
        "mrope_section": [1, 1, 0],
    }
}
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
    return tf.Glm4vMoeConfig(
        vision_config=dict(GLM), text_config={**TEXT, **GLM_ROPE, **moe}, **GLM_IDS
    )


def glm_ocr() -> Any:
    return tf.GlmOcrConfig(vision_config=dict(GLM), text_config={**TEXT, **GLM_ROPE}, **GLM_IDS)


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
    return tf.DeepseekVLConfig(
        vision_config=tf.SiglipVisionConfig(**SIGLIP), text_config=text(), **SPECIAL
    )


def janus() -> Any:
    tower = {**SIGLIP, "projection_dim": 32, "depth": 2, "num_image_tokens": 16}
    return tf.JanusConfig(
        vision_config=tower, text_config=text(), **SPECIAL,
        vq_config={"embed_dim": 4, "num_embeddings": 16, "base_channels": 32, "num_patches": 4, "projection_dim": 32,
                   "channel_multiplier": [1, 1], "image_token_embed_dim": 32},
    )  # fmt: skip


def lighton_ocr() -> Any:
    tower = tf.PixtralVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
    )
    return tf.LightOnOcrConfig(
        vision_config=tower, text_config=text("Qwen3"), **SPECIAL, spatial_merge_size=2
    )


def qianfan_ocr() -> Any:
    tower = {**SIGLIP, "image_size": [16, 16], "patch_size": [4, 4]}
    return tf.QianfanOCRConfig(
        vision_config=tower, text_config=text("Qwen3"), **SPECIAL, image_seq_length=4
    )


def cohere2() -> Any:
    return text(
        "Cohere2",
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"] * 2,
        logit_scale=1.0,
    )


def aya_vision() -> Any:
    return tf.AyaVisionConfig(
        vision_config=tf.SiglipVisionConfig(**SIGLIP),
        text_config=cohere2(),
        **SPECIAL,
        vision_feature_layer=-1,
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


def fast_vlm() -> Any:
    """Its own tower is timm's, which this environment lacks; any that gives a map of features will do."""
    tower = tf.ConvNextConfig(
        hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2, hidden_size=16
    )
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
    return tf.VideoLlama3Config(
        vision_config=tower, text_config=text("Qwen2"), **SPECIAL, video_token_id=VIDEO
    )
