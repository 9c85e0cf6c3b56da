"""The path that users run: chat template, processor, generate. Tokenizers and processors are made here, offline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
)

import foveate
from cases import CASES
from families import END, IMAGE, PAD, START, VIDEO, judge, model
from masked import Masked
from prompts import owners
from test_families import CLOSE, layers

WORDS = ["<unk>", "User:", "Assistant:", "what", "is", "this", "and", "that", "?", "\n"]
TEMPLATE = (
    "{% for m in messages %}User: {% for c in m.content %}{% if c.type == 'image' %}IMAGE{% else %}{{ c.text }}"
    "{% endif %}{% endfor %}\n{% endfor %}Assistant:"
)


def tokenizer(special: dict[int, str]) -> Any:
    """Words and the family's special tokens, which have the ids of the tiny models."""
    table = {"<pad>": PAD, **{word: 3 + i for i, word in enumerate(WORDS)}}
    table |= {token: number for number, token in special.items()}
    made = Tokenizer(WordLevel(table, unk_token="<unk>"))
    made.pre_tokenizer = Split(" ", "removed")
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", padding_side="left",
        additional_special_tokens=list(special.values()),
    )  # fmt: skip


class PicturesOnly(Qwen2VLProcessor):
    """Its video processor needs torchvision, which this environment lacks."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)


def qwen() -> Any:
    special = {IMAGE: "<|image_pad|>", VIDEO: "<|video_pad|>", START: "<|vision_start|>", END: "<|vision_end|>"}
    pictures = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 64, "longest_edge": 1024}
    )
    template = TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    return PicturesOnly(pictures, tokenizer(special), None, chat_template=template)


def idefics() -> Any:
    special = {IMAGE: "<image>", 61: "<fake_token_around_image>", 60: "<global-img>", 59: "<end_of_utterance>"}
    special |= {40 + 4 * i + j: f"<row_{i + 1}_col_{j + 1}>" for i in range(4) for j in range(4)}
    pictures = Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    template = TEMPLATE.replace("IMAGE", "<image>")
    return Idefics3Processor(pictures, tokenizer(special), image_seq_len=4, chat_template=template)


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
    more = {"input_ids": torch.tensor([answer], dtype=torch.long), "attention_mask": torch.ones(1, len(answer)).long()}
    more["mm_token_type_ids"] = torch.zeros(1, len(answer), dtype=torch.long)
    return {k: torch.cat([v, more[k].to(v.dtype)], 1) if k in more else v for k, v in inputs.items()}


CHATS = [["what is this ? ", picture(40, 24)], ["what is ", picture(24, 24), " and that ", picture(20, 44), " ?"]]


@pytest.mark.parametrize("method", ["fastv", "decay"])
@pytest.mark.parametrize(("name", "make"), [("qwen2_vl", qwen), ("qwen2_5_vl", qwen), ("idefics3", idefics)])
def test_from_chat_to_answer(name: str, make: Any, method: str) -> None:
    try:
        processor = make()
    except ImportError as error:  # in older versions of transformers
        pytest.skip(str(error))
    made, case = model(name), CASES[method]
    batch = encoded(processor, CHATS)
    assert int((batch["input_ids"] == IMAGE).sum()) > 20
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
            [case.chooser], 2 if name == "idefics3" else None,
        )  # fmt: skip
        want = oracle.feed()
        for step in range(4):
            torch.testing.assert_close(out.logits[step][i], want[-1], **CLOSE)
            want = oracle.feed(int(out.sequences[i, start + step]))
    assert 0 < trace.mean_kept() < 1
    assert processor.batch_decode(out.sequences[:, start:])
