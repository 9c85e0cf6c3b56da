"""What an evaluation found: figures with intervals, paired differences to the unpruned model, agreement and cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ..cost.flops import Cost
from .intervals import Estimate, difference, estimate
from .metrics import METRICS, TOKENIZERS, remembering
from .metrics.metric import Judged, share
from .records import Record
from .tasks import Sample

Words = Callable[[Sequence[str]], list[str]]


def figures(
    samples: Sequence[Sample],
    runs: Mapping[str, Sequence[Record]],
    tokenizer: str,
    seed: int = 0,
    against: str | None = None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Per method and figure: value, interval, samples, and the difference to the first run, paired by sample.

    A figure is named ``task metric``; where a task has kinds, also ``task/kind metric``. "agreement" is the share of
    answers that equal the first run's to the letter.

    Args:
        samples: all of them, in order.
        runs: records by method, in order of the samples; the first is what others are compared with.
        tokenizer: for captions; of `TOKENIZERS`.
        seed: of the bootstrap.
        against: a run that the others are compared with, too, as "against".
    """
    base = next(iter(runs))
    words = remembering(TOKENIZERS[tokenizer])
    others = {"difference": base} | ({"against": against} if against else {})
    out: dict[str, dict[str, dict[str, Any]]] = {spec: {} for spec in runs}
    for name, metric, chosen in _cells(samples):
        groups = [samples[i].group for i in chosen]
        parts = {spec: _parts(samples, rows, chosen, metric, words) for spec, rows in runs.items()}
        value = METRICS[metric].value
        for spec in runs:
            found = {**asdict(estimate(parts[spec], groups, value, seed)), "samples": len(chosen)}
            for key, other in others.items():
                if spec != other:
                    found[key] = asdict(difference(parts[spec], parts[other], groups, value, seed))
            out[spec][f"{name} {metric}"] = found
    for spec, rows in runs.items():
        if spec != base:
            out[spec]["agreement"] = {
                **asdict(_agreement(samples, rows, runs[base], seed)),
                "samples": len(samples),
            }
    return out


def _parts(
    samples: Sequence[Sample],
    rows: Sequence[Record],
    chosen: Sequence[int],
    metric: str,
    words: Words,
) -> np.ndarray:
    """What each of the chosen samples adds to a figure's sums."""
    judged = Judged(
        [rows[i].answer for i in chosen],
        [samples[i].references for i in chosen],
        [samples[i].group for i in chosen],
        [samples[i].kind for i in chosen],
        words,
    )
    return METRICS[metric].parts(judged)


def _cells(samples: Sequence[Sample]) -> Iterator[tuple[str, str, list[int]]]:
    """(name, metric, numbers of the samples) of every figure."""
    for task in dict.fromkeys(s.task for s in samples):
        ours = [i for i, s in enumerate(samples) if s.task == task]
        kinds = [k for k in dict.fromkeys(samples[i].kind for i in ours) if k]
        for metric in dict.fromkeys(m for i in ours for m in samples[i].metrics):
            judged = [i for i in ours if metric in samples[i].metrics]
            yield task, metric, judged
            for kind in kinds if len(kinds) > 1 else []:
                of_kind = [i for i in judged if samples[i].kind == kind]
                if of_kind:
                    yield f"{task}/{kind}", metric, of_kind


def _agreement(
    samples: Sequence[Sample], ours: Sequence[Record], theirs: Sequence[Record], seed: int
) -> Estimate:
    same = np.array([[float(a.answer == b.answer), 1.0] for a, b in zip(ours, theirs, strict=True)])
    return estimate(same, [s.group for s in samples], share, seed)


def costs(runs: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, float]]:
    """Per method: mean shares of the first run's work, and mean new tokens.

    "flops" is prefill and decode together; "score" what ranking tokens takes, over the same; "tokens" visual tokens
    that a layer of the prefill sees, of those given; "last" those alive in the last layer when the answer ends; "bytes"
    is nan without a cache. The vision tower is left out: every method runs it.
    """
    base = sum((Cost(**r.cost) for r in next(iter(runs.values()))), Cost())
    out = {}
    for spec, rows in runs.items():
        cost = sum((Cost(**r.cost) for r in rows), Cost())
        both = base.prefill + base.decode
        out[spec] = {
            "flops": (cost.prefill + cost.decode) / both,
            "prefill": cost.prefill / base.prefill,
            "decode": cost.decode / base.decode if base.decode else float("nan"),
            "score": cost.score / both,
            "bytes": cost.kv_bytes / base.kv_bytes if base.kv_bytes else float("nan"),
            "tokens": float(np.mean([np.mean(r.kept) / max(r.visual, 1) for r in rows])),
            "last": float(np.mean([r.last / max(r.visual, 1) for r in rows])),
            "new_tokens": float(np.mean([r.tokens for r in rows])),
        }
    return out
