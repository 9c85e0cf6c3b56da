"""Short answers: exact match, VQA accuracy, ANLS, POPE, MME; and the objects of a description."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from ...world.language import parse_description
from .metric import Judged

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(i) for i, word in enumerate(_NUMBERS)}}


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")


def _ones(right: list[float]) -> np.ndarray:
    return np.array([[r, 1.0] for r in right], dtype=float).reshape(-1, 2)


def exact(judged: Judged) -> np.ndarray:
    """Equal to one of the references but for case, blanks and a closing period."""
    pairs = zip(judged.answers, judged.references, strict=True)
    return _ones([float(_plain(a) in {_plain(r) for r in refs}) for a, refs in pairs])


def normal_vqa(text: str) -> str:
    """An answer as the VQA evaluation compares it (1505.00468): no articles, numbers as digits, no punctuation."""
    text = text.replace("\n", " ").strip().lower()
    text = re.sub(r"(?<!\d)\.|\.(?!\d)|(?<=\d),(?=\d)|'", "", text)
    text = re.sub(r"[^\w.\s]", " ", text)
    return " ".join(
        _DIGITS.get(word, word) for word in text.split() if word not in ("a", "an", "the")
    )


def vqa(judged: Judged) -> np.ndarray:
    """VQA accuracy: mean over annotators of min(1, others who said it / 3).

    Deviations: answers and references are always normalised (the official script leaves unanimous references as they
    are), and apostrophes are dropped in place of its table of contractions.
    """
    scores = []
    for answer, references in zip(judged.answers, judged.references, strict=True):
        same = [normal_vqa(reference) == normal_vqa(answer) for reference in references]
        scores.append(float(np.mean([min(1.0, (sum(same) - mine) / 3) for mine in same])))
    return _ones(scores)


def distance(a: str, b: str) -> int:
    """Levenshtein's edit distance."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (left != right))
    return row[-1]


def anls(judged: Judged) -> np.ndarray:
    """Average normalised Levenshtein similarity (1907.00490): the best reference's, 0 where it is below one half."""
    scores = []
    for answer, references in zip(judged.answers, judged.references, strict=True):
        said = " ".join(answer.lower().split())
        truths = [" ".join(r.lower().split()) for r in references]
        best = max(1 - distance(said, t) / max(len(said), len(t), 1) for t in truths)
        scores.append(best if best >= 0.5 else 0.0)
    return _ones(scores)


def says_yes(answer: str) -> bool:
    """POPE's reading (2305.10355): yes unless the first sentence holds "no" or "not"."""
    return not {"no", "not"} & set(
        answer.split(".", maxsplit=1)[0].replace(",", "").lower().split()
    )


def pope(judged: Judged) -> np.ndarray:
    """True positives, false positives, false negatives, true negatives; "yes" is positive."""
    rows = np.zeros((len(judged.answers), 4))
    for row, answer, references in zip(rows, judged.answers, judged.references, strict=True):
        yes = says_yes(answer)
        truth = _plain(references[0]) == "yes"
        row[(0 if truth else 1) if yes else (2 if truth else 3)] = 1
    return rows


def pope_f1(sums: np.ndarray) -> np.ndarray:
    """F1 of "yes" in percent; 0 where no "yes" was right."""
    right = sums[..., 0]
    wrong = sums[..., 1] + sums[..., 2]
    return 100 * 2 * right / np.maximum(2 * right + wrong, 1)


def pope_accuracy(sums: np.ndarray) -> np.ndarray:
    """Share of right answers in percent."""
    return 100 * (sums[..., 0] + sums[..., 3]) / np.maximum(sums.sum(-1), 1)


def pope_yes(sums: np.ndarray) -> np.ndarray:
    """Share of "yes" in percent."""
    return 100 * (sums[..., 0] + sums[..., 1]) / np.maximum(sums.sum(-1), 1)


def mme(judged: Judged) -> np.ndarray:
    """Per kind: right answers, questions, pictures with all right, pictures; a picture counts at its first question."""
    kinds = {kind: i for i, kind in enumerate(dict.fromkeys(judged.kinds))}
    right = [
        a.strip().lower().startswith(_plain(r[0]))
        for a, r in zip(judged.answers, judged.references, strict=True)
    ]
    pictures = list(zip(judged.kinds, judged.groups, strict=True))
    whole = dict.fromkeys(pictures, True)
    for good, picture in zip(right, pictures, strict=True):
        whole[picture] &= good
    rows = np.zeros((len(right), len(kinds), 4))
    seen = set()
    for row, good, picture in zip(rows, right, pictures, strict=True):
        first = picture not in seen
        seen.add(picture)
        row[kinds[picture[0]]] = (good, 1, first and whole[picture], first)
    return rows.reshape(len(right), -1)


def mme_value(sums: np.ndarray) -> np.ndarray:
    """MME's score (2306.13394): accuracy plus accuracy+, in percent, added up over kinds."""
    by_kind = sums.reshape(*sums.shape[:-1], -1, 4)
    shares = by_kind[..., [0, 2]] / np.maximum(by_kind[..., [1, 3]], 1)
    return 100 * shares.sum((-1, -2))


def objects(judged: Judged) -> np.ndarray:
    """Of descriptions of drawn scenes: objects right in every attribute, objects said, objects there."""
    rows = []
    for answer, references in zip(judged.answers, judged.references, strict=True):
        said = Counter(parse_description(answer))
        there = Counter(parse_description(references[0]))
        rows.append([sum((said & there).values()), sum(said.values()), sum(there.values())])
    return np.array(rows, dtype=float).reshape(-1, 3)


def recall(sums: np.ndarray) -> np.ndarray:
    """Share of the objects there that were named right, in percent."""
    return 100 * sums[..., 0] / np.maximum(sums[..., 2], 1)


def precision(sums: np.ndarray) -> np.ndarray:
    """Share of the objects said that are there, in percent."""
    return 100 * sums[..., 0] / np.maximum(sums[..., 1], 1)
