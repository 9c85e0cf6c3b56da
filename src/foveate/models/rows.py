"""Rows of people's data files: JSON lines or one JSON document, with questions or whole chats about pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..files import read_text
from .images import beside, names_file
from .prompts import Turn

CHATS = ("conversations", "messages")  # LLaVA's name for the turns of a row, and OpenAI's
_USER = ("user", "human")
_ASSISTANT = ("assistant", "gpt")
_MARK = "<image>"  # where LLaVA's texts have a picture
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")


def rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Numbered rows of a file; what is no JSON comes as an exception in its row's place.

    Rows are the lines of JSON lines, or the entries of one list, or one object over several lines.

    Raises:
        ValueError: there is no such file, or it is no text; the file is named.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    text = read_text(path)
    if text.lstrip().startswith("["):
        whole = _parsed(text)
        yield from enumerate(whole if isinstance(whole, list) else [whole], 1)
        return
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    parsed = [(number, _parsed(line)) for number, line in lines]
    if len(lines) > 1 and isinstance(parsed[0][1], Exception):
        whole = _parsed(text)
        if not isinstance(whole, Exception):
            parsed = [(1, whole)]
    yield from parsed


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return ValueError(f"it is not JSON: {error}")


def pictures_of(row: dict[str, Any], folder: Path) -> tuple[tuple[str, ...], list[str | Path]]:
    """The pictures of a row as they are written, and as `open_image` takes them.

    They stand under ``images`` or ``image``: paths relative to the folder, URLs, data URIs, or base64.

    Raises:
        ValueError: they are no texts.
    """
    found = row["images"] if "images" in row else row.get("image", [])
    names = [found] if isinstance(found, str) else found
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"images={str(found)[:60]!r}; expected text or a list of texts")
    return tuple(names), [_source(name, folder) for name in names]


def _source(name: str, folder: Path) -> str | Path:
    """A picture, as `open_image` takes it; base64 has no path, and is too long for one."""
    if _BASE64.fullmatch(name) and not names_file(str(folder / name)):
        return name
    return beside(name, folder)


def turns_of(row: dict[str, Any], pictures: int) -> list[Turn]:
    """The turns of a chat, (user, assistant) each; a system text is left out.

    Contents are texts or lists of parts. Pictures belong to the first turn: a written ``<image>`` is
    taken out of the text.

    Args:
        row: with one of `CHATS`: a list of ``from`` and ``value``, or of ``role`` and ``content``.
        pictures: of the row.

    Raises:
        ValueError: the two do not take turns, an answer is empty, or there is another number of
            ``<image>`` than of pictures.
        KeyError: there is no chat.
    """
    said = [_message(one) for one in row[next((name for name in CHATS if name in row), CHATS[0])]]
    said = said[1:] if said and said[0][0] == "system" else said
    roles = [role for role, _ in said]
    if (
        not roles
        or roles != [(_USER, _ASSISTANT)[i % 2][0] for i in range(len(roles))]
        or len(roles) % 2
    ):
        raise ValueError(
            f"user and assistant must take turns, but the roles are {', '.join(roles) or 'none'}"
        )
    marks = sum(text.count(_MARK) for _, text in said)
    if marks not in (0, pictures):
        raise ValueError(f"the text has {marks} {_MARK}, but the row has {pictures} pictures")
    texts = [text.replace(_MARK, "").strip() for _, text in said]
    if not all(texts[1::2]):
        raise ValueError("an answer is empty")
    return list(zip(texts[::2], texts[1::2], strict=True))


def _message(message: dict[str, Any]) -> tuple[str, str]:
    """Role and text."""
    role = str(message["role"] if "role" in message else message["from"])
    content = message["content"] if "content" in message else message["value"]
    if not isinstance(content, str):
        content = " ".join(part["text"] for part in content if part.get("type") == "text")
    return "user" if role in _USER else "assistant" if role in _ASSISTANT else role, content
