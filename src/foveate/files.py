"""Text files: whatever goes wrong with one, the error names it."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

_MARKS = {  # of byte orders; the longer marks first, since UTF-32's begins as UTF-16's does
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8; or in UTF-16 or UTF-32, if it begins with a byte-order mark.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is not text in one of these encodings.
    """
    return decoded(Path(path).read_bytes(), str(path))


def decoded(content: bytes, name: str) -> str:
    """As `read_text`, of bytes that `name` is said to hold."""
    encoding = next((found for mark, found in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding).replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"cannot read {name}: byte {error.start} is not {encoding.upper()}; save it as UTF-8 text"
        ) from error


def write_text(path: str | Path, text: str) -> None:
    """Writes a file in UTF-8.

    Raises:
        OSError: it cannot be written; the message names the file.
    """
    with writing(path):
        Path(path).write_text(text, encoding="utf-8")


def append_text(path: Path, text: str) -> None:
    """Adds to the end of a file, and waits until it is on the disk.

    Raises:
        OSError: it cannot be written; the message names the file.
    """
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Names the file in the errors of what writes it, as of a full disk.

    Raises:
        OSError: it cannot be written.
    """
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
