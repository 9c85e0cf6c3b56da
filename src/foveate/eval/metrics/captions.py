"""CIDEr, BLEU and ROUGE-L by pycocoevalcap (``foveate[eval]``); only its pure-Python classes."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np

from .metric import Judged


def _library(name: str) -> Any:
    """A module of pycocoevalcap.

    Raises:
        ValueError: it is not installed.
    """
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise ValueError("caption metrics need pycocoevalcap; pip install 'foveate[eval]'")
    return importlib.import_module(f"pycocoevalcap.{name}")


def _tokens(judged: Judged) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """References and answers in words, by number, tokenized in one go."""
    flat = [text for refs in judged.references for text in refs]
    done = iter(judged.tokenize([*flat, *judged.answers]))
    wanted = {i: [next(done) for _ in refs] for i, refs in enumerate(judged.references)}
    return wanted, {i: [next(done)] for i in range(len(judged.answers))}


def cider(judged: Judged) -> np.ndarray:
    """CIDEr-D per caption; document frequencies are those of these references, as always, and stay in a bootstrap."""
    scores = _library("cider.cider").Cider().compute_score(*_tokens(judged))[1]
    return np.stack([np.asarray(scores, dtype=float), np.ones(len(scores))], 1)


def rouge(judged: Judged) -> np.ndarray:
    """ROUGE-L per caption."""
    scores = _library("rouge.rouge").Rouge().compute_score(*_tokens(judged))[1]
    return np.stack([np.asarray(scores, dtype=float), np.ones(len(scores))], 1)


def bleu(judged: Judged) -> np.ndarray:
    """Per caption: right n-grams and all n-grams, n = 1 to 4, its length and that of the nearest reference."""
    library = _library("bleu.bleu_scorer")
    wanted, given = _tokens(judged)
    rows = []
    for i in wanted:
        cooked = library.cook_test(
            given[i][0], library.cook_refs(wanted[i], n=4), eff="closest", n=4
        )
        rows.append([*cooked["correct"], *cooked["guess"], cooked["testlen"], cooked["reflen"]])
    return np.array(rows, dtype=float)


def bleu_value(sums: np.ndarray) -> np.ndarray:
    """BLEU-4 of a corpus from `bleu`'s sums: geometric mean of precisions times the brevity penalty (percent)."""
    right = sums[..., :4]
    asked = sums[..., 4:8]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.exp(np.log((right + 1e-15) / (asked + 1e-9)).mean(-1))
        ratio = sums[..., 8] / sums[..., 9]
        return 100 * precision * np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)
