"""The path that users run: chat template, processor, generate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from transformers.models.smolvlm import processing_smolvlm

import foveate
from models.families import FAMILIES, judge, model
from models.processors import PROCESSORS
from models.prompts import owners
from models.tiny import IMAGE, NEWEST
from oracles.cases import CASES
from oracles.crossing import CLOSE, layers
from oracles.masked import Masked

# those with a chat template, whose class can be imported without torchvision; test_loading.py has the others
NAMES = [
    name for name, parts in PROCESSORS.items()
    if name in FAMILIES and parts().mark is not None and parts().kind != "PixtralProcessor"
]  # fmt: skip


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def encoded(processor: Any, chats: list[list[Any]]) -> dict[str, Any]:
    """Chats of words and pictures, through template and processor."""
    text, pictures = [], []
    for chat in chats:
        content = [
            {"type": "text", "text": c} if isinstance(c, str) else {"type": "image"} for c in chat
        ]
        text.append(processor.apply_chat_template([{"role": "user", "content": content}]))
        pictures.append([c for c in chat if not isinstance(c, str)])
    return dict(processor(images=pictures, text=text, padding=True, return_tensors="pt"))


def grown(inputs: dict[str, Any], answer: list[int]) -> dict[str, Any]:
    """The inputs with an answer behind them."""
    ids = inputs["input_ids"]
    more = {
        "input_ids": torch.tensor([answer], dtype=ids.dtype),
        "attention_mask": torch.ones(1, len(answer)),
    }
    none = torch.zeros(1, len(answer))
    return {
        k: torch.cat([v, more.get(k, none).to(v.dtype)], 1) if v.shape == ids.shape else v
        for k, v in inputs.items()
    }


CHATS = [
    ["what is this ? ", picture(40, 24)],
    ["what is ", picture(24, 24), " and that ", picture(20, 44), " ?"],
]


@pytest.mark.parametrize(
    ("name", "method"),
    [*((name, "decay") for name in NAMES), ("qwen2_5_vl", "fastv"), ("smolvlm", "fastv")],
)
def test_from_chat_to_answer(name: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        processing_smolvlm, "num2words", str
    )  # a package that it wants for videos alone
    try:
        processor = PROCESSORS[name]().build()
    except ImportError as error:
        if NEWEST:
            raise
        pytest.skip(f"transformers {tf.__version__}: {error}")  # some want torchvision there
    made, case = model(name, FAMILIES[name].backends[0]), CASES[method]
    batch = encoded(processor, CHATS)
    shown = (batch["input_ids"] == IMAGE).sum(1)
    assert shown.min() > 3 and shown[0] != shown[1]
    with foveate.apply(made, case.method) as trace:
        out = made.generate(
            **batch, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True,
            suppress_tokens=[IMAGE, *range(57, IMAGE)],  # Ovis2 reads its marks anew in a longer prompt
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
