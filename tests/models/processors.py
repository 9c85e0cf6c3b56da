"""ONE ENTRY PER FAMILY: the processor that its users load, made offline of its real classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import transformers as tf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

from models.tiny import END, IMAGE, PAD, ROW, START, VIDEO

WORDS = ["<unk>", "User:", "Assistant:", "what", "is", "this", "and", "that", "?", "\n"]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{% for c in m.content %}{{ c.text }}{% endfor %}\n"
    "{% elif m.role == 'assistant' %}Assistant: {% for c in m.content %}{{ c.text }}{% endfor %}\n{% else %}"
    "User: {% for c in m.content %}{% if c.type == 'image' %}IMAGE{% else %}{{ c.text }}"
    "{% endif %}{% endfor %}\n{% endif %}{% endfor %}Assistant:"
)
SIZE = {"height": 16, "width": 16}


def tokenizer(special: dict[int, str], **named: str) -> Any:
    """Words and the family's special tokens, which have the ids of the tiny models; `named` ones it knows by name."""
    table = {"<pad>": PAD, "<s>": 1, "</s>": 2, **{word: 3 + i for i, word in enumerate(WORDS)}}
    table |= {token: number for number, token in special.items()}
    made = Tokenizer(WordLevel(table, unk_token="<unk>"))
    made.pre_tokenizer = Split(" ", "removed")
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        padding_side="left",
        **({"extra_special_tokens": named} if named else {"additional_special_tokens": list(special.values())}),
    )  # fmt: skip


def template(image: str) -> str:
    return TEMPLATE.replace("IMAGE", image)


def without_videos(processor: Any) -> Any:
    """A processor that takes anything for its video processor: the true one needs torchvision, which we lack."""

    class WithoutVideos(processor):  # type: ignore[misc]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            stands = argument_name == "video_processor"
            return (
                None if stands else super().check_argument_for_proper_class(argument_name, argument)
            )

    return WithoutVideos


def made(kind: str, **options: Any) -> Callable[[], Any]:
    """What makes a picture processor; older versions of transformers lack some of the classes."""
    return lambda: getattr(tf, kind)(**options)


@dataclass(frozen=True)
class Parts:
    """A processor in parts.

    Attributes:
        kind: the processor's class.
        pictures: makes its picture processor.
        special: the family's tokens by their ids.
        mark: what the chat template writes for a picture; None: the family has no chat template.
        names: of tokens that the tokenizer knows by name.
        options: of the processor.
        video: the class of its video processor, if it has one.
    """

    kind: str
    pictures: Callable[[], Any]
    special: dict[int, str]
    mark: str | None = "<image>"
    names: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    video: str | None = None

    def build(self) -> Any:
        """In memory, without videos."""
        chat = {} if self.mark is None else {"chat_template": template(self.mark)}
        kind = getattr(tf, self.kind)
        if self.video is not None:
            kind = without_videos(kind)
            chat["video_processor"] = SimpleNamespace(
                num_frames=1, fps=1
            )  # SmolVLM's template asks for these
        parts = {
            "image_processor": self.pictures(),
            "tokenizer": tokenizer(self.special, **self.names),
        }
        return kind(**parts, **self.options, **chat)

    def save(self, folder: Path) -> None:
        """In the files that most repositories have: one for each part."""
        tokenizer(self.special, **self.names).save_pretrained(folder)
        self.pictures().save_pretrained(folder)
        if self.video is not None:
            (folder / "video_preprocessor_config.json").write_text(
                json.dumps({"video_processor_type": self.video})
            )
        (folder / "processor_config.json").write_text(
            json.dumps({"processor_class": self.kind, **self.options})
        )
        if self.mark is not None:
            (folder / "chat_template.jinja").write_text(template(self.mark))


def qwen(kind: str, video: str) -> Parts:
    special = {
        IMAGE: "<|image_pad|>",
        VIDEO: "<|video_pad|>",
        START: "<|vision_start|>",
        END: "<|vision_end|>",
    }
    pictures = made(
        "Qwen2VLImageProcessorPil",
        patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 64, "longest_edge": 1024},
    )  # fmt: skip
    return Parts(
        kind, pictures, special, "<|vision_start|><|image_pad|><|vision_end|>", video=video
    )


def idefics(kind: str, video: str | None = None) -> Parts:
    """Tiles: a picture is scaled to 32 pixels, cut into tiles of 16, and shown whole as well."""
    special = {
        IMAGE: "<image>",
        61: "<fake_token_around_image>",
        60: "<global-img>",
        59: "<end_of_utterance>",
    }
    special |= {40 + 4 * i + j: f"<row_{i + 1}_col_{j + 1}>" for i in range(4) for j in range(4)}
    sizes = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}}
    pictures = made(f"{kind}ImageProcessorPil", **sizes)
    return Parts(f"{kind}Processor", pictures, special, options={"image_seq_len": 4}, video=video)


def idefics2() -> Parts:
    special = {IMAGE: "<image>", 61: "<fake_token_around_image>", 59: "<end_of_utterance>"}
    sizes = {"size": {"shortest_edge": 8, "longest_edge": 16}, "do_image_splitting": False}
    pictures = made("Idefics2ImageProcessorPil", **sizes)
    return Parts("Idefics2Processor", pictures, special, options={"image_seq_len": 6})


TILES = {"size": SIZE, "crop_to_patches": True, "min_patches": 1, "max_patches": 4}


def internvl(
    kind: str = "InternVLProcessor", mark: str = "<IMG_CONTEXT>", video: str | None = None
) -> Parts:
    """Tiles side by side: as many as the picture's shape asks for, and an overview."""
    names = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    special = {IMAGE: "<IMG_CONTEXT>", VIDEO: "<video>", START: "<img>", END: "</img>"}
    special |= {58: "<image>"} if mark == "<image>" else {}
    pictures = made("GotOcr2ImageProcessorPil", **TILES)
    return Parts(kind, pictures, special, mark, names, {"image_seq_length": 4}, video)


def glm(kind: str = "Glm4v") -> Parts:
    names = {"image_token": "<|image|>", "video_token": "<|video|>"}
    special = {
        IMAGE: "<|image|>",
        VIDEO: "<|video|>",
        START: "<|begin_of_image|>",
        END: "<|end_of_image|>",
    }
    sizes = {"size": {"shortest_edge": 128, "longest_edge": 2048}}
    pictures = made(
        f"{kind}ImageProcessorPil", patch_size=4, merge_size=2, temporal_patch_size=2, **sizes
    )
    chat = "<|begin_of_image|><|image|><|end_of_image|>"
    return Parts(f"{kind}Processor", pictures, special, chat, names, video=f"{kind}VideoProcessor")


def aya() -> Parts:
    """Tiles, each after its name."""
    special = {IMAGE: "<|IMG_PATCH|>", 62: "<image>", 61: "<|START_OF_IMG|>", 60: "<|END_OF_IMG|>"}
    special |= {59: "TILE", 58: "TILE_GLOBAL", 57: "<|IMG_LINE_BREAK|>"}
    sizes = {"patch_size": 4, "img_size": 16, "downsample_factor": 2}
    return Parts(
        "AyaVisionProcessor", made("GotOcr2ImageProcessorPil", **TILES), special, options=sizes
    )


def gemma() -> Parts:
    names = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    special = {IMAGE: "<image_soft_token>", START: "<start_of_image>", END: "<end_of_image>"}
    pictures = made("Gemma3ImageProcessorPil", size=SIZE)
    return Parts(
        "Gemma3Processor", pictures, special, "<start_of_image>", names, {"image_seq_length": 4}
    )


def paligemma() -> Parts:
    """It has no chat template."""
    pictures = made("SiglipImageProcessorPil", size=SIZE, image_seq_length=16)
    return Parts(
        "PaliGemmaProcessor", pictures, {IMAGE: "<image>"}, None, {"image_token": "<image>"}
    )


CLIP_LIKE = {
    "patch_size": 4,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}


def llava(**options: Any) -> Parts:
    pictures = made("CLIPImageProcessorPil", size=SIZE, crop_size=SIZE, do_center_crop=False)
    return Parts("LlavaProcessor", pictures, {IMAGE: "<image>"}, options={**CLIP_LIKE, **options})


def pixtral(merge: int) -> Parts:
    special = {IMAGE: "[IMG]", ROW: "[IMG_BREAK]", END: "[IMG_END]"}
    pictures = made(
        "PixtralImageProcessorPil", patch_size={"height": 4, "width": 4}, size={"longest_edge": 16}
    )
    return Parts(
        "PixtralProcessor",
        pictures,
        special,
        "[IMG]",
        options={"patch_size": 4, "spatial_merge_size": merge},
    )


def lighton() -> Parts:
    names = {
        "image_token": "<|image_pad|>",
        "image_break_token": "<|break|>",
        "image_end_token": "<|vision_end|>",
    }
    special = {IMAGE: "<|image_pad|>", ROW: "<|break|>", END: "<|vision_end|>"}
    pictures = made(
        "PixtralImageProcessorPil", patch_size={"height": 8, "width": 8}, size={"longest_edge": 16}
    )
    sizes = {"patch_size": 4, "spatial_merge_size": 2}
    return Parts("LightOnOcrProcessor", pictures, special, "<|image_pad|>", names, sizes)


PINPOINTS = {"image_grid_pinpoints": [[16, 32], [32, 16]]}
GRID = {**PINPOINTS, "size": {"shortest_edge": 16}, "crop_size": SIZE}


def llava_next() -> Parts:
    return Parts(
        "LlavaNextProcessor",
        made("LlavaNextImageProcessorPil", **GRID),
        {IMAGE: "<image>"},
        options=CLIP_LIKE,
    )


def llava_next_video() -> Parts:
    pictures = made("LlavaNextImageProcessorPil", **GRID)
    special = {IMAGE: "<image>", VIDEO: "<video>"}
    return Parts(
        "LlavaNextVideoProcessor",
        pictures,
        special,
        options=CLIP_LIKE,
        video="LlavaNextVideoVideoProcessor",
    )


def llava_onevision() -> Parts:
    pictures = made("LlavaOnevisionImageProcessorPil", **PINPOINTS, size=SIZE)
    sizes = {"num_image_tokens": 16, "vision_feature_select_strategy": "full"}
    special = {IMAGE: "<image>", VIDEO: "<video>"}
    return Parts(
        "LlavaOnevisionProcessor",
        pictures,
        special,
        options=sizes,
        video="LlavaOnevisionVideoProcessor",
    )


def video_llava() -> Parts:
    pictures = made("VideoLlavaImageProcessor", size={"shortest_edge": 16}, crop_size=SIZE)
    special = {IMAGE: "<image>", VIDEO: "<video>"}
    return Parts(
        "VideoLlavaProcessor",
        pictures,
        special,
        options=CLIP_LIKE,
        video="VideoLlavaVideoProcessor",
    )


def video_llama() -> Parts:
    names = {"image_token": "<image>", "video_token": "<video>"}
    pictures = made(
        "VideoLlama3ImageProcessorPil",
        patch_size=4,
        merge_size=2,
        size={"shortest_edge": 64, "longest_edge": 1024},
    )
    special = {IMAGE: "<image>", VIDEO: "<video>"}
    return Parts(
        "VideoLlama3Processor", pictures, special, names=names, video="VideoLlama3VideoProcessor"
    )


def ovis2() -> Parts:
    special = {
        IMAGE: "<IMG_ATOM>",
        57: "<image>",
        58: "<IMG_START>",
        59: "<IMG_GRID>",
        60: "<IMG_COL>",
    }
    special |= {61: "<IMG_ROW>", 62: "<IMG_END>"}
    pictures = made("Ovis2ImageProcessorPil", **TILES)
    return Parts("Ovis2Processor", pictures, special, options={"image_seq_length": 4})


def deepseek() -> Parts:
    pictures = made("DeepseekVLImageProcessorPil", size=SIZE)
    names = {"image_token": "<image>"}
    return Parts(
        "DeepseekVLProcessor",
        pictures,
        {IMAGE: "<image>"},
        names=names,
        options={"num_image_tokens": 16},
    )


def janus() -> Parts:
    names = {
        "image_token": "<image>",
        "boi_token": "<begin_of_image>",
        "eoi_token": "<end_of_image>",
    }
    special = {IMAGE: "<image>", START: "<begin_of_image>", END: "<end_of_image>"}
    pictures = made("JanusImageProcessorPil", size=SIZE)
    return Parts("JanusProcessor", pictures, special, names=names, options={"num_image_tokens": 16})


PROCESSORS: dict[str, Callable[[], Parts]] = {
    "qwen2_vl": partial(qwen, "Qwen2VLProcessor", "Qwen2VLVideoProcessor"),
    "qwen2_5_vl": partial(qwen, "Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
    "qwen3_vl": partial(qwen, "Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    "qwen3_vl_moe": partial(qwen, "Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    "idefics2": idefics2,
    "idefics3": partial(idefics, "Idefics3"),
    "smolvlm": partial(idefics, "SmolVLM", "SmolVLMVideoProcessor"),
    "internvl": partial(internvl, video="InternVLVideoProcessor"),
    "qianfan_ocr": partial(internvl, "QianfanOCRProcessor", "<image>"),
    "glm4v": glm,
    "glm4v_moe": glm,
    "glm46v": partial(glm, "Glm46V"),
    "glm_ocr": partial(glm, "Glm46V"),
    "aya_vision": aya,
    "gemma3": gemma,
    "paligemma": paligemma,
    "paligemma2": paligemma,
    "llava": llava,
    "vipllava": llava,
    "fast_vlm": partial(
        llava, num_additional_image_tokens=0, vision_feature_select_strategy="full"
    ),
    "llava_pixtral": partial(pixtral, 1),
    "mistral3": partial(pixtral, 2),
    "ministral3": partial(pixtral, 2),
    "lighton_ocr": lighton,
    "llava_next": llava_next,
    "llava_next_video": llava_next_video,
    "llava_onevision": llava_onevision,
    "video_llava": video_llava,
    "video_llama_3": video_llama,
    "ovis2": ovis2,
    "deepseek_vl": deepseek,
    "janus": janus,
}
UNMADE = {  # families whose processor cannot be made here, each with the reason
    "aria": "its picture processor makes 490 or 980 pixels a side, which a tiny tower cannot see",
    "got_ocr2": "its processor writes 256 tokens a picture, whatever the tower makes",
    "cohere2_vision": "its picture processor needs torchvision",
    "perception_lm": "its picture processor needs torchvision, and its tower timm",
    "glm4v_video": "the model is glm4v's; its videos need torchvision",
}
