"""Words of captions: Stanford's PTB tokenizer where java is, plain words elsewhere."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
from collections.abc import Callable, Sequence


def words(texts: Sequence[str]) -> list[str]:
    """Lower-case letters, digits and apostrophes; everything else parts words."""
    return [" ".join(re.findall(r"[\w']+", text.lower())) for text in texts]


def ptb(texts: Sequence[str]) -> list[str]:
    """As the COCO caption evaluation has it: lower case, punctuation dropped. Runs java once for all texts.

    Raises:
        ValueError: pycocoevalcap or java is missing.
    """
    if importlib.util.find_spec("pycocoevalcap") is None or shutil.which("java") is None:
        raise ValueError(
            "the PTB tokenizer needs java and pip install 'foveate[eval]'; or use --tokenizer words"
        )
    made = importlib.import_module("pycocoevalcap.tokenizer.ptbtokenizer").PTBTokenizer()
    lines = [" ".join(text.split()) or "." for text in texts]
    found = made.tokenize({i: [{"caption": line}] for i, line in enumerate(lines)})
    return [found[i][0] for i in range(len(lines))]


def remembering(
    tokenize: Callable[[Sequence[str]], list[str]],
) -> Callable[[Sequence[str]], list[str]]:
    """The tokenizer, asked only once about each text."""
    known: dict[str, str] = {}

    def from_memory(texts: Sequence[str]) -> list[str]:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(new, tokenize(new), strict=True) if new else ())
        return [known[text] for text in texts]

    return from_memory


TOKENIZERS: dict[str, Callable[[Sequence[str]], list[str]]] = {"words": words, "ptb": ptb}


def tokenizer_of(name: str) -> str:
    """ "auto" as the one that this machine has, others as they are.

    Raises:
        ValueError: an unknown name.
    """
    if name == "auto":
        there = (
            importlib.util.find_spec("pycocoevalcap") is not None
            and shutil.which("java") is not None
        )
        return "ptb" if there else "words"
    if name not in TOKENIZERS:
        raise ValueError(f"unknown tokenizer {name!r}; expected auto, {', '.join(TOKENIZERS)}")
    return name
