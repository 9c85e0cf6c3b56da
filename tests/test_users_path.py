"""The path that users run: chat template, processor, generate. Tokenizers and processors are made here, offline."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers.models.smolvlm import processing_smolvlm

import foveate
from cases import CASES
from families import FAMILIES, judge, model
from masked import Masked
from prompts import owners
from test_families import CLOSE, layers
from tiny import END, IMAGE, NEWEST, PAD, START, VIDEO

WORDS = ["<unk>", "User:", "Assistant:", "what", "is", "this", "and", "that", "?", "\n"]
TEMPLATE = (
    "{% for m in messages %}User: {% for c in m.content %}{% if c.type == 'image' %}IMAGE{% else %}{{ c.text }}"
    "{% endif %}{% endfor %}\n{% endfor %}Assistant:"
)
SIZE = {"height": 16, "width": 16}


def tokenizer(special: dict[int, str], **named: str) -> Any:
    """Words and the family's special tokens, which have the ids of the tiny models; `named` ones it knows by name."""
    table = {"<pad>": PAD, **{word: 3 + i for i, word in enumerate(WORDS)}}
    table |= {token: number for number, token in special.items()}
    made = Tokenizer(WordLevel(table, unk_token="<unk>"))
    made.pre_tokenizer = Split(" ", "removed")
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", padding_side="left",
        **({"extra_special_tokens": named} if named else {"additional_special_tokens": list(special.values())}),
    )  # fmt: skip


def template(image: str) -> str:
    return TEMPLATE.replace("IMAGE", image)


def pictures_only(processor: Any) -> Any:
    """A processor that takes anything for its video processor: the true one needs torchvision, which we lack."""

    class PicturesOnly(processor):  # type: ignore[misc]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            stands = argument_name == "video_processor"
            return None if stands else super().check_argument_for_proper_class(argument_name, argument)

    return PicturesOnly


def qwen(kind: str) -> Any:
    special = {IMAGE: "<|image_pad|>", VIDEO: "<|video_pad|>", START: "<|vision_start|>", END: "<|vision_end|>"}
    pictures = tf.Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 64, "longest_edge": 1024}
    )
    chat = template("<|vision_start|><|image_pad|><|vision_end|>")
    return pictures_only(getattr(tf, f"{kind}Processor"))(pictures, tokenizer(special), None, chat_template=chat)


def idefics(kind: str) -> Any:
    """Tiles: a picture is scaled to 32 pixels, cut into tiles of 16, and shown whole as well."""
    special = {IMAGE: "<image>", 61: "<fake_token_around_image>", 60: "<global-img>", 59: "<end_of_utterance>"}
    special |= {40 + 4 * i + j: f"<row_{i + 1}_col_{j + 1}>" for i in range(4) for j in range(4)}
    sizes = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}}
    pictures = getattr(tf, f"{kind}ImageProcessorPil")(**sizes)
    video = SimpleNamespace(num_frames=1, fps=1)  # what SmolVLM's chat template asks of its video processor
    parts = (pictures, tokenizer(special), *([video] if kind == "SmolVLM" else []))
    made = pictures_only(getattr(tf, f"{kind}Processor"))
    return made(*parts, image_seq_len=4, chat_template=template("<image>"))


def internvl() -> Any:
    """Tiles side by side: as many as the picture's shape asks for, and an overview."""
    names = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    special = {IMAGE: "<IMG_CONTEXT>", VIDEO: "<video>", START: "<img>", END: "</img>"}
    pictures = tf.GotOcr2ImageProcessorPil(size=SIZE, crop_to_patches=True, min_patches=1, max_patches=4)
    made = pictures_only(tf.InternVLProcessor)
    return made(
        pictures, tokenizer(special, **names), None, image_seq_length=4, chat_template=template("<IMG_CONTEXT>")
    )


def glm() -> Any:
    names = {"image_token": "<|image|>", "video_token": "<|video|>"}
    special = {IMAGE: "<|image|>", VIDEO: "<|video|>", START: "<|begin_of_image|>", END: "<|end_of_image|>"}
    sizes = {"size": {"shortest_edge": 128, "longest_edge": 2048}}
    pictures = tf.Glm4vImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=2, **sizes)
    chat = template("<|begin_of_image|><|image|><|end_of_image|>")
    return pictures_only(tf.Glm4vProcessor)(pictures, tokenizer(special, **names), None, chat_template=chat)


def aya() -> Any:
    """Tiles, each after its name."""
    special = {IMAGE: "<|IMG_PATCH|>", 62: "<image>", 61: "<|START_OF_IMG|>", 60: "<|END_OF_IMG|>"}
    special |= {59: "TILE", 58: "TILE_GLOBAL", 57: "<|IMG_LINE_BREAK|>"}
    pictures = tf.GotOcr2ImageProcessorPil(size=SIZE, crop_to_patches=True, min_patches=1, max_patches=4)
    sizes = {"patch_size": 4, "img_size": 16, "downsample_factor": 2}
    return tf.AyaVisionProcessor(pictures, tokenizer(special), chat_template=template("<image>"), **sizes)


def gemma() -> Any:
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    special = {IMAGE: "<image_soft_token>", START: "<start_of_image>", END: "<end_of_image>"}
    return tf.Gemma3Processor(
        tf.Gemma3ImageProcessorPil(size=SIZE), tokenizer(special, **names), image_seq_length=4,
        chat_template=template("<start_of_image>"),
    )  # fmt: skip


def llava_next() -> Any:
    grid = {"image_grid_pinpoints": [[16, 32], [32, 16]], "size": {"shortest_edge": 16}, "crop_size": SIZE}
    return tf.LlavaNextProcessor(
        tf.LlavaNextImageProcessorPil(**grid), tokenizer({IMAGE: "<image>"}), patch_size=4,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=template("<image>"),
    )  # fmt: skip


def llava_onevision() -> Any:
    pictures = tf.LlavaOnevisionImageProcessorPil(image_grid_pinpoints=[[16, 32], [32, 16]], size=SIZE)
    return pictures_only(tf.LlavaOnevisionProcessor)(
        pictures, tokenizer({IMAGE: "<image>", VIDEO: "<video>"}), None, num_image_tokens=16,
        vision_feature_select_strategy="full", chat_template=template("<image>"),
    )  # fmt: skip


PROCESSORS: dict[str, Callable[[], Any]] = {
    "qwen2_vl": partial(qwen, "Qwen2VL"),
    "qwen2_5_vl": partial(qwen, "Qwen2_5_VL"),
    "qwen3_vl": partial(qwen, "Qwen3VL"),
    "idefics3": partial(idefics, "Idefics3"),
    "smolvlm": partial(idefics, "SmolVLM"),
    "internvl": internvl,
    "glm4v": glm,
    "aya_vision": aya,
    "gemma3": gemma,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
}


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(processor: Any, chats: list[list[Any]]) -> dict[str, Any]:
    """Chats of words and pictures, through template and processor."""
    text, pictures = [], []
    for chat in chats:
        content = [{"type": "text", "text": c} if isinstance(c, str) else {"type": "image"} for c in chat]
        text.append(processor.apply_chat_template([{"role": "user", "content": content}]))
        pictures.append([c for c in chat if not isinstance(c, str)])
    return dict(processor(images=pictures, text=text, padding=True, return_tensors="pt"))


def grown(inputs: dict[str, Any], answer: list[int]) -> dict[str, Any]:
    """The inputs with an answer behind them."""
    ids = inputs["input_ids"]
    more = {"input_ids": torch.tensor([answer], dtype=ids.dtype), "attention_mask": torch.ones(1, len(answer))}
    none = torch.zeros(1, len(answer))
    return {
        k: torch.cat([v, more.get(k, none).to(v.dtype)], 1) if v.shape == ids.shape else v for k, v in inputs.items()
    }


CHATS = [["what is this ? ", picture(40, 24)], ["what is ", picture(24, 24), " and that ", picture(20, 44), " ?"]]


@pytest.mark.parametrize(
    ("name", "method"), [*((name, "decay") for name in PROCESSORS), ("qwen2_5_vl", "fastv"), ("smolvlm", "fastv")]
)
def test_from_chat_to_answer(name: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processing_smolvlm, "num2words", str)  # a package that it wants for videos alone
    try:
        processor = PROCESSORS[name]()
    except ImportError as error:
        if NEWEST:
            raise
        pytest.skip(f"transformers {tf.__version__}: {error}")  # some want torchvision there
    made, case = model(name), CASES[method]
    batch = encoded(processor, CHATS)
    shown = (batch["input_ids"] == IMAGE).sum(1)
    assert shown.min() > 3 and shown[0] != shown[1]
    with foveate.apply(made, case.method) as trace:
        out = made.generate(
            **batch, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True,
            suppress_tokens=[IMAGE, VIDEO],
        )  # fmt: skip
    start = batch["input_ids"].shape[1]
    for i, chat in enumerate(CHATS):
        alone = encoded(processor, [chat])
        ids = alone["input_ids"][0].tolist()
        oracle = Masked(
            judge(name), layers(judge(name)), lambda answer, alone=alone: grown(alone, answer), owners(name, ids),
            [case.chooser], FAMILIES[name].side,
        )  # fmt: skip
        want = oracle.feed()
        for step in range(4):
            torch.testing.assert_close(out.logits[step][i], want[-1], **CLOSE)
            want = oracle.feed(int(out.sequences[i, start + step]))
    assert 0 < trace.mean_kept() < 1
    assert processor.batch_decode(out.sequences[:, start:])
