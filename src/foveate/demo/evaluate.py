"""How well a model does on the world's held-out pictures, with and without methods."""

from __future__ import annotations

import importlib
import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from ..core.method import Method
from ..engine.apply import apply
from ..engine.trace import Trace
from ..models.loaded import Loaded
from ..world import language
from ..world.draw import draw
from ..world.easyvqa import EasyVQA
from ..world.scenes import sample

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Question:
    """A prompt about a picture, and the answers that count as right. `group` names the picture for bootstrap."""

    kind: str
    picture: Image.Image
    prompt: str
    references: tuple[str, ...]
    group: int


@dataclass
class Report:
    """Figures of one method. Shares are in [0, 1]; an interval is (low, high), 95 %, by bootstrap over pictures."""

    method: str
    pictures: int
    figures: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    answers: list[tuple[str, str, str]] = field(default_factory=list)  # (kind, answer, first reference)


def questions(split: str, count: int, start: int = 0) -> Iterator[Question]:
    """For each of `count` scenes: a description, a caption, and one question of every kind it allows."""
    for index in range(start, start + count):
        scene = sample(split, index)
        picture = draw(scene).image
        rng = np.random.default_rng((*scene.seed, 13))
        yield Question("description", picture, language.DESCRIPTION_PROMPTS[0], (language.describe(scene),), index)
        yield Question("caption", picture, language.CAPTION_PROMPTS[0], tuple(language.captions(scene)), index)
        for kind in language.KINDS:
            turn = language.ask(scene, kind, rng)
            if turn is not None:
                yield Question(kind, picture, turn.question, (turn.answer,), index)


def easy_questions(data: EasyVQA, count: int | None = None) -> Iterator[Question]:
    """The test questions of easy-vqa, of the first `count` pictures or of all."""
    for index in range(data.images("test") if count is None else min(count, data.images("test"))):
        picture = data.picture("test", index)
        for turn in data.turns("test", index)[1]:
            yield Question("easy-vqa", picture, turn.question, (turn.answer,), index)


@torch.inference_mode()
def answer(
    loaded: Loaded,
    asked: Sequence[Question],
    methods: Sequence[Method],
    batch: int = 32,
    progress: Progress | None = None,
    traces: list[Trace] | None = None,
) -> list[str]:
    """Greedy answers, in batches, long and short ones apart so that nobody waits for a description.

    What was kept is added to `traces`, if it is given.
    """
    answers = [""] * len(asked)
    long = [i for i, q in enumerate(asked) if q.kind in ("description", "caption")]
    short = [i for i, q in enumerate(asked) if q.kind not in ("description", "caption")]
    for group, new in ((long, 64), (short, 4)):
        for start in range(0, len(group), batch):
            chosen = group[start : start + batch]
            inputs = loaded.encode([([asked[i].picture], asked[i].prompt) for i in chosen])
            with apply(loaded.model, *methods) as trace:
                out = loaded.model.generate(**inputs, max_new_tokens=new, do_sample=False)
            if traces is not None:
                traces.append(trace)
            decoded = loaded.processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for i, text in zip(chosen, decoded, strict=True):
                answers[i] = text.strip()
            if progress is not None:
                progress(len(chosen))
    return answers


def judge(name: str, asked: Sequence[Question], answers: Sequence[str], seed: int = 0) -> Report:
    """Object precision and recall of descriptions, CIDEr of captions, accuracy of each kind of question."""
    report = Report(name, len({q.group for q in asked}))
    report.answers = [(q.kind, a, q.references[0]) for q, a in zip(asked, answers, strict=True)]
    rows = [(q, a) for q, a in zip(asked, answers, strict=True)]
    described = [(q, a) for q, a in rows if q.kind == "description"]
    if described:
        hits = np.array([_matches(a, q.references[0]) for q, a in described], dtype=float)  # (n 3): right, said, there
        _interval(report, "object recall", hits[:, [0, 2]], seed)
        _interval(report, "object precision", hits[:, [0, 1]], seed)
        exact = np.array([[a == q.references[0], 1] for q, a in described], dtype=float)
        _interval(report, "exact descriptions", exact, seed)
    captioned = [(q, a) for q, a in rows if q.kind == "caption"]
    if captioned:
        scores = _cider([a for _, a in captioned], [q.references for q, _ in captioned])
        if scores is not None:
            _interval(report, "CIDEr", np.stack([scores, np.ones_like(scores)], 1), seed)
    for kind in (*language.KINDS, "easy-vqa"):
        right = np.array([[a == q.references[0], 1] for q, a in rows if q.kind == kind], dtype=float)
        if len(right):
            _interval(report, kind, right, seed)
    return report


def _matches(text: str, truth: str) -> tuple[int, int, int]:
    """(objects right in every attribute, objects said, objects there)."""
    said, there = Counter(language.parse_description(text)), Counter(language.parse_description(truth))
    return sum((said & there).values()), sum(said.values()), sum(there.values())


def _interval(report: Report, key: str, parts: np.ndarray, seed: int) -> None:
    """The ratio of the columns' sums, and its bootstrap interval over rows."""
    rng = np.random.default_rng(seed)
    draws = parts[rng.integers(len(parts), size=(1000, len(parts)))].sum(1)
    ratios = draws[:, 0] / np.maximum(draws[:, 1], 1)
    report.figures[key] = float(parts[:, 0].sum() / max(parts[:, 1].sum(), 1))
    report.intervals[key] = (float(np.quantile(ratios, 0.025)), float(np.quantile(ratios, 0.975)))


def _cider(answers: Sequence[str], references: Sequence[tuple[str, ...]]) -> np.ndarray | None:
    """CIDEr per caption, times 100 as papers print it; None without pycocoevalcap (``foveate[eval]``).

    Our words are tokens already, so punctuation is dropped and no tokenizer (PTB's needs java) is used.
    """
    if importlib.util.find_spec("pycocoevalcap") is None:
        return None
    scorer = importlib.import_module("pycocoevalcap.cider.cider").Cider()

    def clean(text: str) -> str:
        return text.replace(",", "").replace(".", "")

    wanted = {i: [clean(r) for r in refs] for i, refs in enumerate(references)}
    given = {i: [clean(a)] for i, a in enumerate(answers)}
    return np.asarray(scorer.compute_score(wanted, given)[1]) * 100
