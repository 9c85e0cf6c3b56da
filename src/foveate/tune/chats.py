"""Calibration data in chat format: a folder of JSON files, as vision-language models are fine-tuned with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..models.images import beside
from .examples import Example, Examples, pictures

_USER = ("user", "human")
_ASSISTANT = ("assistant", "gpt")


def folder_examples(folder: Path) -> Examples:
    """Every answer of every chat in a folder's ``*.jsonl`` and ``*.json`` files, in the order of their names.

    A row has ``image`` or ``images`` (paths relative to the folder) and ``messages`` (role and content, a text or a
    list of parts) or ``conversations`` (from and value), in which user and assistant take turns. Images belong to the
    first turn, and a written ``<image>`` is taken out of the text. Earlier turns go with an answer as they are.

    Raises:
        ValueError: there are no such files, or not one usable row in them.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".jsonl"))
    if not files:
        raise ValueError(
            f"{folder} holds no .json or .jsonl file; expected chats of images, user and assistant"
        )
    found = Examples([])
    for file in files:
        for number, row in _rows(file):
            try:
                if isinstance(row, Exception):
                    raise row
                found.rows.extend(_turns(row, folder))
            except (KeyError, TypeError, ValueError) as error:
                found.unusable.append(f"{file.name}:{number}: {type(error).__name__}: {error}")
    if not found.rows:
        raise ValueError(
            f"{folder} has no usable chat. {found.unusable[0] if found.unusable else 'Its files are empty'}"
        )
    return found


def _rows(file: Path) -> Iterator[tuple[int, Any]]:
    """Numbered rows of a list in .json, or of the lines of .jsonl; what cannot be parsed is an exception."""
    text = file.read_text()
    if file.suffix == ".jsonl":
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield number, _parsed(line)
        return
    whole = _parsed(text)
    rows = whole if isinstance(whole, list) else [whole]
    yield from enumerate(rows, 1)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return error


def _turns(row: dict[str, Any], folder: Path) -> list[Example]:
    names = row["images"] if "images" in row else [row["image"]] if "image" in row else []
    load = pictures([beside(name, folder) for name in names])
    said = [_message(m) for m in row["messages" if "messages" in row else "conversations"]]
    said = said[1:] if said and said[0][0] == "system" else said
    roles = [role for role, _ in said]
    if (
        not said
        or roles != [(_USER, _ASSISTANT)[i % 2][0] for i in range(len(roles))]
        or len(roles) % 2
    ):
        raise ValueError(
            f"user and assistant must take turns, but the roles are {', '.join(roles) or 'none'}"
        )
    pairs = [(said[i][1], said[i + 1][1]) for i in range(0, len(said), 2)]
    if not all(answer for _, answer in pairs):
        raise ValueError("an answer is empty")
    return [
        Example(load, asked, answer, tuple(pairs[:i])) for i, (asked, answer) in enumerate(pairs)
    ]


def _message(message: dict[str, Any]) -> tuple[str, str]:
    """Role and text."""
    role = str(message["role"] if "role" in message else message["from"])
    content = message["content"] if "content" in message else message["value"]
    if not isinstance(content, str):
        content = " ".join(part["text"] for part in content if part.get("type") == "text")
    role = "user" if role in _USER else "assistant" if role in _ASSISTANT else role
    return role, content.replace("<image>", "").strip()
