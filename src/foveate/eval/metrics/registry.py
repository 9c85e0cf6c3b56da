"""Metrics by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from . import captions, short
from .metric import Judged, Metric
from .tokenize import TOKENIZERS

METRICS: dict[str, Metric] = {
    "exact": Metric(short.exact),
    "vqa": Metric(short.vqa, least=4),
    "anls": Metric(short.anls),
    "pope-f1": Metric(short.pope, short.pope_f1),
    "pope-accuracy": Metric(short.pope, short.pope_accuracy),
    "pope-yes": Metric(short.pope, short.pope_yes),
    "mme": Metric(short.mme, short.mme_value),
    "cider": Metric(captions.cider),
    "bleu-4": Metric(captions.bleu, captions.bleu_value),
    "rouge-l": Metric(captions.rouge),
    "object-recall": Metric(short.objects, short.recall),
    "object-precision": Metric(short.objects, short.precision),
}
GROUPS = {
    "pope": ("pope-f1", "pope-accuracy", "pope-yes"),
    "caption": ("cider", "bleu-4", "rouge-l"),
}

PER_ANSWER = ("exact", "vqa", "anls", "object-recall", "object-precision", "rouge-l")
"""Metrics that single answers have, in [0, 1]."""


def of_one(name: str, answer: str, references: Sequence[str]) -> float:
    """One answer's metric, in [0, 1]; words are told apart without java.

    Args:
        name: of `PER_ANSWER`.
        answer: to be judged.
        references: the answers that count as right.
    """
    metric = METRICS[name]
    judged = Judged([answer], [tuple(references)], [""], [""], TOKENIZERS["words"])
    percent = metric.value(metric.parts(judged).sum(0)[None])[0]
    return float(percent) / 100


def named(text: str) -> tuple[str, ...]:
    """The metrics that a name stands for.

    Raises:
        ValueError: there is none of that name.
    """
    if text in GROUPS:
        return GROUPS[text]
    if text not in METRICS:
        known = [*METRICS, *GROUPS]
        close = difflib.get_close_matches(text, known, 1)
        meant = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"unknown metric {text!r}{meant}; there are {', '.join(known)}")
    return (text,)
