"""How ``smol`` reads conversations."""

from __future__ import annotations

from typing import Any

from foveate.models.smol.model import ANSWERED, ASKED, GRID, IMAGE, OPENING
from lab.conversations import Dialect


def dialect(tokenizer: Any, text: int) -> Dialect:
    """How `CHAT_TEMPLATE` writes a conversation, with `text` places for text in a training row."""

    def encode(words: str) -> list[int]:
        return list(tokenizer(words, add_special_tokens=False)["input_ids"])

    image = tokenizer.convert_tokens_to_ids(IMAGE)
    return Dialect(
        encode=encode,
        prefix=(*encode(OPENING), *([image] * GRID * GRID), *encode("\n")),
        opening=tuple(encode("\n<|im_start|>user\n")),
        asked=tuple(encode(ASKED)),
        answered=tuple(encode(ANSWERED)),
        pad=0,
        grid=GRID,
        text=text,
    )
