"""ONE ENTRY PER FAMILY: tiny random models that vLLM's CPU kernels take (heads of 32), with their processors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

from foveate.artefacts.predictors import Card, save_pretrained
from foveate.core.predictor import RatePredictor

LAYERS = 6
TEXT = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
VISION = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 5, "num_attention_heads": 2, "image_size": 56,
    "patch_size": 7,
}  # fmt: skip
IMAGE, VIDEO, START, END = 250, 251, 252, 253
WEIGHTS = "model.safetensors"
WORDS = 240  # w3 to w239 are words


@dataclass(frozen=True)
class Family:
    """A family to be tested.

    Attributes:
        config: of the tiny model.
        processor: made offline of its real classes, saved into a folder.
        mark: what stands for a picture in a prompt.
        sides: of the pictures that the tests show it.
        renamed: the name that checkpoints on the hub, and so vLLM, give what this transformers saves.
    """

    config: Callable[[], Any]
    processor: Callable[[Path], None]
    mark: str = "<image>"
    sides: tuple[tuple[int, int], ...] = ((56, 56), (56, 56))
    renamed: Callable[[str], str] = lambda key: key


def tokenizer(special: dict[str, int], **named: str) -> Any:
    table = {
        "<pad>": 0,
        "<s>": 1,
        "</s>": 2,
        **{f"w{i}": i for i in range(3, WORDS)},
        "<unk>": WORDS,
        **special,
    }
    made = Tokenizer(WordLevel(table, unk_token="<unk>"))
    made.pre_tokenizer = Split(" ", "removed")
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        **({"extra_special_tokens": named} if named else {"additional_special_tokens": list(special)}),
    )  # fmt: skip


TEMPLATE = (
    "{%- for m in messages %}{%- if m['content'] is string %}{{ m['content'] }}{%- else %}{%- for c in m['content'] %}"
    "{%- if c['type'] == 'text' %}{{ c['text'] }}{%- else %}IMAGE{%- endif %} {% endfor %}{%- endif %} {% endfor %}"
)


def llava() -> Any:
    return tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**VISION, projection_dim=64), text_config=tf.LlamaConfig(**TEXT),
        image_token_id=IMAGE, image_token_index=IMAGE, image_seq_length=64, vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )  # fmt: skip


def llava_processor(folder: Path, side: int = 56) -> None:
    size = {"height": side, "width": side}
    tf.LlavaProcessor(
        image_processor=tf.CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False),
        tokenizer=tokenizer({"<image>": IMAGE}), patch_size=7, vision_feature_select_strategy="default",
        image_token="<image>", num_additional_image_tokens=1, chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    ).save_pretrained(folder)  # fmt: skip


def inside(key: str) -> str:
    """Hub checkpoints have towers in a `vision_model` of their own."""
    return re.sub(r"vision_tower\.(?!vision_model)", "vision_tower.vision_model.", key)


def parts(kind: str, folder: Path, pictures: Any, words: Any, **options: Any) -> None:
    """A processor in the files that most repositories have: one for each part."""
    words.save_pretrained(folder)
    pictures.save_pretrained(folder)
    video = options.pop("video", None)
    if video is not None:
        said = {"video_processor_type": video, **options.pop("frames", {})}
        (folder / "video_preprocessor_config.json").write_text(json.dumps(said))
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": kind, **options}))


PINPOINTS = [[56, 112], [112, 56]]


def llava_next() -> Any:
    return tf.LlavaNextConfig(
        vision_config=tf.CLIPVisionConfig(**VISION, projection_dim=64), text_config=tf.LlamaConfig(**TEXT),
        image_token_id=IMAGE, image_token_index=IMAGE, vision_feature_layer=-2, image_grid_pinpoints=PINPOINTS,
        vision_feature_select_strategy="default",
    )  # fmt: skip


def llava_next_processor(folder: Path) -> None:
    size = {"height": 56, "width": 56}
    pictures = tf.LlavaNextImageProcessorPil(
        size={"shortest_edge": 56}, crop_size=size, image_grid_pinpoints=PINPOINTS
    )
    parts(
        "LlavaNextProcessor", folder, pictures, tokenizer({"<image>": IMAGE}), patch_size=7,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip


SIGLIP = {**VISION, "vision_use_head": False}


def llava_onevision() -> Any:
    return tf.LlavaOnevisionConfig(
        vision_config=tf.SiglipVisionConfig(**SIGLIP), text_config=tf.Qwen2Config(**QWEN_TEXT), image_token_id=IMAGE,
        image_token_index=IMAGE, video_token_id=VIDEO, video_token_index=VIDEO, vision_feature_layer=-1,
        image_grid_pinpoints=PINPOINTS,
    )  # fmt: skip


def llava_onevision_processor(folder: Path) -> None:
    pictures = tf.LlavaOnevisionImageProcessorPil(
        image_grid_pinpoints=PINPOINTS, size={"height": 56, "width": 56}
    )
    parts(
        "LlavaOnevisionProcessor", folder, pictures, tokenizer({"<image>": IMAGE, "<video>": VIDEO}),
        num_image_tokens=64, vision_feature_select_strategy="full", video="LlavaOnevisionVideoProcessor",
    )  # fmt: skip


MROPE = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
}
QWEN_TEXT = {**{k: v for k, v in TEXT.items() if k != "head_dim"}, "hidden_size": 128}
QWEN_IDS = {
    "image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END,
}  # fmt: skip
QWEN_MARK = "<|vision_start|> <|image_pad|> <|vision_end|>"


def qwen2_vl() -> Any:
    tower = {
        "depth": 3, "embed_dim": 64, "hidden_size": 128, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2,
        "spatial_merge_size": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    return tf.Qwen2VLConfig(vision_config=tower, text_config={**QWEN_TEXT, **MROPE}, **QWEN_IDS)


def qwen2_5_vl() -> Any:
    tower = {
        "depth": 3, "hidden_size": 64, "out_hidden_size": 128, "num_heads": 2, "patch_size": 4,
        "intermediate_size": 96, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 16,
        "fullatt_block_indexes": [1],
    }  # fmt: skip
    return tf.Qwen2_5_VLConfig(vision_config=tower, text_config={**QWEN_TEXT, **MROPE}, **QWEN_IDS)


def qwen3_vl() -> Any:
    tower = {
        "depth": 3, "hidden_size": 64, "out_hidden_size": 64, "num_heads": 2, "patch_size": 4,
        "intermediate_size": 96, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 2],
    }  # fmt: skip
    # vLLM reads off the configuration what transformers' code always does: the axes interleave.
    rope = {**MROPE["rope_parameters"], "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    text = {**TEXT, "rope_parameters": rope}
    return tf.Qwen3VLConfig(vision_config=tower, text_config=text, **QWEN_IDS)


def qwen_processor(kind: str, video: str, folder: Path) -> None:
    words = tokenizer(
        {
            "<|image_pad|>": IMAGE,
            "<|video_pad|>": VIDEO,
            "<|vision_start|>": START,
            "<|vision_end|>": END,
        }
    )
    pictures = tf.Qwen2VLImageProcessorPil(
        patch_size=4,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 256, "longest_edge": 4096},
    )
    parts(kind, folder, pictures, words, video=video)


def internvl() -> Any:
    tower = tf.InternVLVisionConfig(**{**VISION, "image_size": [56, 56], "patch_size": [7, 7]})
    return tf.InternVLConfig(
        vision_config=tower,
        text_config=tf.Qwen2Config(**QWEN_TEXT),
        image_token_id=IMAGE,
        image_seq_length=16,
    )


def internvl_processor(folder: Path) -> None:
    names = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    words = tokenizer(
        {"<IMG_CONTEXT>": IMAGE, "<video>": VIDEO, "<img>": START, "</img>": END}, **names
    )
    size = {"height": 56, "width": 56}
    pictures = tf.GotOcr2ImageProcessorPil(
        size=size, crop_to_patches=True, min_patches=1, max_patches=4
    )
    parts(
        "InternVLProcessor", folder, pictures, words, image_seq_length=16, video="InternVLVideoProcessor",
    )  # fmt: skip


def idefics3() -> Any:
    tower = {**VISION, "model_type": "idefics3_vision"}
    return tf.Idefics3Config(
        vision_config=tower,
        text_config=tf.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=0,
    )


def smolvlm() -> Any:
    tower = {**VISION, "model_type": "smolvlm_vision"}
    return tf.SmolVLMConfig(
        vision_config=tower,
        text_config=tf.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=0,
    )


def idefics_processor(kind: str, video: str | None, folder: Path) -> None:
    special = {
        "<image>": IMAGE,
        "<fake_token_around_image>": START,
        "<global-img>": END,
        "<end_of_utterance>": 254,
    }
    special |= {f"<row_{i + 1}_col_{j + 1}>": 241 + 3 * i + j for i in range(3) for j in range(3)}
    pictures = getattr(tf, f"{kind}ImageProcessorPil")(
        size={"longest_edge": 112}, max_image_size={"longest_edge": 56}
    )
    parts(f"{kind}Processor", folder, pictures, tokenizer(special), image_seq_len=16, video=video)


def mistral3() -> Any:
    tower = tf.PixtralVisionConfig(**{**VISION, "num_hidden_layers": 3})
    return tf.Mistral3Config(
        vision_config=tower, text_config=tf.MistralConfig(**TEXT, sliding_window=None), image_token_id=IMAGE,
        image_token_index=IMAGE, spatial_merge_size=2,
    )  # fmt: skip


def mistral3_processor(folder: Path) -> None:
    words = tokenizer({"[IMG]": IMAGE, "[IMG_BREAK]": START, "[IMG_END]": END})
    pictures = tf.PixtralImageProcessorPil(
        patch_size={"height": 7, "width": 7}, size={"longest_edge": 56}
    )
    parts("PixtralProcessor", folder, pictures, words, patch_size=7, spatial_merge_size=2)


GLM_ROPE = {
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [2, 3, 3],
    },
}  # fmt: skip


def glm4v() -> Any:
    tower = {
        "depth": 3, "hidden_size": 64, "out_hidden_size": 128, "num_heads": 2, "patch_size": 4,
        "intermediate_size": 96, "spatial_merge_size": 2, "temporal_patch_size": 2, "image_size": 32,
    }  # fmt: skip
    ids = {
        "image_start_token_id": START,
        "image_end_token_id": END,
        "video_start_token_id": 248,
        "video_end_token_id": 249,
    }
    return tf.Glm4vConfig(
        vision_config=tower, text_config={**TEXT, "hidden_size": 128, **GLM_ROPE}, image_token_id=IMAGE,
        video_token_id=VIDEO, **ids,
    )  # fmt: skip


def glm4v_processor(folder: Path) -> None:
    names = {"image_token": "<|image|>", "video_token": "<|video|>"}
    special = {
        "<|image|>": IMAGE, "<|video|>": VIDEO, "<|begin_of_image|>": START, "<|end_of_image|>": END,
        "<|begin_of_video|>": 248, "<|end_of_video|>": 249,
    }  # fmt: skip
    pictures = tf.Glm4vImageProcessorPil(
        patch_size=4,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 256, "longest_edge": 8192},
    )
    parts(
        "Glm4vProcessor", folder, pictures, tokenizer(special, **names), video="Glm4vVideoProcessor",
        frames={"size": {"shortest_edge": 256, "longest_edge": 8192}, "patch_size": 4, "merge_size": 2},
    )  # fmt: skip


def gemma3() -> Any:
    language = tf.Gemma3TextConfig(
        **{**TEXT, "sliding_window": 16, "query_pre_attn_scalar": 32},
        layer_types=["sliding_attention", "full_attention"] * 3,
    )
    return tf.Gemma3Config(
        vision_config=tf.SiglipVisionConfig(**SIGLIP), text_config=language, image_token_id=IMAGE,
        image_token_index=IMAGE, boi_token_id=START, boi_token_index=START, eoi_token_id=END, eoi_token_index=END,
        mm_tokens_per_image=16,
    )  # fmt: skip


def gemma3_processor(folder: Path) -> None:
    names = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    lines = {"\n": 241, "\n\n": 242, "\n\n\n": 243, "\n\n\n\n": 244}
    words = tokenizer(
        {"<image_soft_token>": IMAGE, "<start_of_image>": START, "<end_of_image>": END, **lines},
        **names,
    )
    pictures = tf.Gemma3ImageProcessorPil(size={"height": 56, "width": 56})
    parts("Gemma3Processor", folder, pictures, words, image_seq_length=16)


WIDE = ((56, 56), (112, 40))
FAMILIES: dict[str, Family] = {
    "llava": Family(llava, llava_processor, renamed=inside),
    "llava_next": Family(llava_next, llava_next_processor, sides=WIDE, renamed=inside),
    "llava_onevision": Family(
        llava_onevision, llava_onevision_processor, sides=WIDE, renamed=inside
    ),
    "qwen2_vl": Family(
        qwen2_vl,
        partial(qwen_processor, "Qwen2VLProcessor", "Qwen2VLVideoProcessor"),
        QWEN_MARK,
        WIDE,
    ),
    "qwen2_5_vl": Family(
        qwen2_5_vl,
        partial(qwen_processor, "Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
        QWEN_MARK,
        WIDE,
    ),
    "qwen3_vl": Family(
        qwen3_vl,
        partial(qwen_processor, "Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
        QWEN_MARK,
        WIDE,
    ),
    "internvl": Family(internvl, internvl_processor, "<IMG_CONTEXT>", WIDE),
    "idefics3": Family(idefics3, partial(idefics_processor, "Idefics3", None), sides=WIDE),
    "smolvlm": Family(
        smolvlm, partial(idefics_processor, "SmolVLM", "SmolVLMVideoProcessor"), sides=WIDE
    ),
    "mistral3": Family(mistral3, mistral3_processor, "[IMG]", WIDE),
    "glm4v": Family(glm4v, glm4v_processor, "<|begin_of_image|> <|image|> <|end_of_image|>", WIDE),
    "gemma3": Family(gemma3, gemma3_processor, "<start_of_image>", renamed=inside),
}


def build(name: str) -> Any:
    """A model whose attention is far from uniform, so that what is dropped matters."""
    torch.manual_seed(5)
    made = tf.AutoModelForImageTextToText.from_config(FAMILIES[name].config())
    with torch.no_grad():
        for part, p in made.named_parameters():
            if p.ndim > 1 and "embed" not in part and "position" not in part:
                p.mul_(5 if "q_proj" in part or "k_proj" in part else 3)
        # No answer holds a special token: each has half of a word's logit, and the largest is positive.
        head = made.get_output_embeddings().weight
        head[WORDS:] = head[3 : 3 + len(head) - WORDS] / 2
    made.generation_config.eos_token_id = None
    return made.eval()


RATES = [0.2, 0.4, 0.6, 0.8, 0.9]


def predictor(folder: Path) -> Path:
    """Puts a predictor of DyRate's into `folder`: the more an answer looks at itself, the more leaves."""
    made = RatePredictor(TEXT["num_attention_heads"], RATES)
    with torch.no_grad():
        for rate, share in enumerate((0.0, 0.05, 0.1, 0.2, 0.4)):  # the nearest share wins
            made.linear.weight[rate, 3::4] = 2 * share / made.heads
            made.linear.bias[rate] = -(share**2)
    card = Card("tiny", LAYERS, made.heads, 2, RATES, True, "last", 1.0)
    save_pretrained(made, card, folder)
    return folder


def save(name: str, folder: Path) -> Path:
    """Puts model and processor into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    family = FAMILIES[name]
    build(name).save_pretrained(folder)
    weights = {family.renamed(key): value for key, value in load_file(folder / WEIGHTS).items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    family.processor(folder)
    return folder
