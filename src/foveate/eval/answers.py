"""Answers of a model under a method: in batches, shared among processes, resumable, each with its trace and cost."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.method import Method
from ..cost.flops import Cost, Shapes, costs_of_samples, shapes
from ..engine.apply import apply
from ..engine.trace import Trace
from ..models.loaded import Loaded
from ..processes import ALONE, Processes
from . import records
from .decoding import GREEDY, Decoding
from .records import Record
from .tasks import Sample

Progress = Callable[[int], None]


def batches(samples: Sequence[Sample], size: int) -> list[list[int]]:
    """Numbers of the samples of each batch, like answer lengths together; the same whoever runs them."""
    lengths = sorted({s.max_new_tokens for s in samples})
    alike = [
        [i for i, s in enumerate(samples) if s.max_new_tokens == longest] for longest in lengths
    ]
    return [some[start : start + size] for some in alike for start in range(0, len(some), size)]


def fingerprint(model: Any) -> str:
    """A hash of a few numbers of every weight: tells models apart without reading them whole."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        digest.update(name.encode())
        digest.update(str(tuple(weight.shape)).encode())
        digest.update(weight.detach().reshape(-1)[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.inference_mode()
def answer(
    loaded: Loaded,
    samples: Sequence[Sample],
    methods: Sequence[Method | str],
    shape: Shapes,
    lengths: Sequence[int] | None = None,
    decoding: Decoding = GREEDY,
) -> list[Record]:
    """Answers of one batch; `sample` and `batch` of the records are left 0.

    Args:
        loaded: a model of a supported family with its processor.
        samples: of one batch.
        methods: applied meanwhile; none is the unpruned model.
        shape: of the model.
        lengths: answers of so many tokens are forced, for costs at equal lengths; else each ends by itself.
        decoding: how. The work of all beams is their sample's; what is kept is told of the first.
    """
    model = loaded.model
    inputs = loaded.encode(
        [(sample.images(), sample.prompt) for sample in samples],
        earlier=[sample.earlier for sample in samples],
    )
    longest = max(lengths) if lengths else samples[0].max_new_tokens
    least = {"min_new_tokens": longest} if lengths else {}
    with apply(model, *methods) as trace, decoding.seeded(samples[0].key):
        out = model.generate(**inputs, max_new_tokens=longest, **decoding.options, **least)
    new = out[:, inputs["input_ids"].shape[1] :]
    ends = list(lengths) if lengths else _lengths(new, model.generation_config.eos_token_id)
    texts = loaded.processor.batch_decode(new, skip_special_tokens=True)
    beams = decoding.num_beams
    rows = costs_of_samples(shape, trace, [end for end in ends for _ in range(beams)])
    costs = [sum(rows[i * beams : (i + 1) * beams], Cost()) for i in range(len(samples))]
    return [
        _record(i * beams, samples[i].key, texts[i].strip(), ends[i], trace, costs[i])
        for i in range(len(ends))
    ]


def _lengths(new: Tensor, ends: int | Sequence[int] | None) -> list[int]:
    """Tokens of each answer up to its end-of-sequence token."""
    marks = torch.tensor([] if ends is None else ends, device=new.device, dtype=new.dtype).reshape(
        -1
    )
    ended = torch.isin(new, marks)
    first = torch.where(ended.any(1), ended.long().argmax(1) + 1, new.shape[1])
    return [int(n) for n in first]


def _record(row: int, key: str, text: str, tokens: int, trace: Trace, cost: Cost) -> Record:
    start = trace.passes[0]
    end = trace.passes[min(tokens, len(trace.passes)) - 1]
    last = sum(t[-1, row] for t in end.visual(trace.layers))
    kept = [int(layer[row]) for layer in trace.prefill()]
    return Record(
        0,
        0,
        key,
        text,
        tokens,
        int(start.text[row]),
        int(start.total[row]),
        kept,
        int(last),
        asdict(cost),
    )


def evaluate(
    loaded: Loaded,
    samples: Sequence[Sample],
    spec: str,
    methods: Sequence[Method | str],
    size: int,
    *,
    among: Processes = ALONE,
    folder: Path | None = None,
    progress: Progress | None = None,
    decoding: Decoding = GREEDY,
) -> list[Record]:
    """Every sample's answer, in order; the same however many processes share the work or how often it was resumed.

    Args:
        loaded: a model of a supported family with its processor.
        samples: to answer.
        spec: the method's text, which names its answers in `folder`.
        methods: applied meanwhile.
        size: samples of a batch.
        among: the processes that share the work.
        folder: keeps answers as they come; whole batches found there are not run again.
        progress: called with the samples of each batch that this process answers or finds answered.
        decoding: how answers are generated; samples drawn hang on the seed and the batch alone.
    """
    tick = progress or (lambda count: None)
    plan = batches(samples, size)
    home = None if folder is None else records.place(folder, spec)
    done = {} if home is None else records.read(home, [len(batch) for batch in plan])
    among.wait()  # nobody writes until all have read
    found = [record for batch in done.values() for record in batch]
    shape = shapes(loaded.model)
    mine = []
    tick(len(found))
    for number in [n for n in range(len(plan)) if n not in done][among.index :: among.count]:
        answers = answer(
            loaded, [samples[i] for i in plan[number]], methods, shape, decoding=decoding
        )
        rows = [
            replace(row, sample=i, batch=number)
            for row, i in zip(answers, plan[number], strict=True)
        ]
        if home is not None:
            records.append(home, among.index, rows)
        mine += rows
        tick(len(rows))
    return sorted([*found, *chain.from_iterable(among.gather(mine))], key=lambda r: r.sample)
