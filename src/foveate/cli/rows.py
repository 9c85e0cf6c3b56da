"""One row per method: run it on prompts, interleaved with the plain model, and say what it kept and cost."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from ..core.method import Method
from ..measure.cost import Cost, Shapes, cost_of_trace, shapes
from ..measure.timing import Timed, generate_timed
from .output import flops


@dataclass
class Row:
    """A method's name as given, its methods (None: the plain model), and what came of it on each prompt."""

    spec: str
    methods: list[Method] | None
    answers: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    further: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    trace: Any = None


def run(
    model: Any, processor: Any, prompts: Sequence[dict[str, Any]], rows: list[Row], new: int, repeats: int, tick: Callable[[], None]
) -> None:
    """Fills in `rows`: every method on every prompt, `repeats` times in turn after one warm-up; medians are kept."""
    shape = shapes(model)
    for prompt in prompts:
        pictures = _pictures(prompt)
        times: dict[str, list[Timed]] = {row.spec: [] for row in rows}
        for turn in range(repeats + 1):
            for row in rows:
                timed = generate_timed(model, prompt, row.methods, new)
                times[row.spec] += [timed] if turn else []
                tick()
        for row in rows:
            done = times[row.spec]
            row.answers.append(processor.decode(done[0].ids, skip_special_tokens=True).strip())
            row.first.append(statistics.median(t.first for t in done))
            row.further.append(statistics.median(t.further for t in done))
            trace = generate_timed(model, prompt, row.methods or [], new).trace
            row.trace = row.trace or trace
            row.kept.append(1.0 if trace is None else trace.mean_kept())
            row.cost = _sum(row.cost, cost_of_trace(shape, trace, pictures=pictures) if trace else Cost())


def _pictures(prompt: dict[str, Any]) -> int:
    pixels = prompt.get("pixel_values")
    return 0 if pixels is None else int(pixels.shape[:-3].numel())


def _sum(a: Cost, b: Cost) -> Cost:
    return Cost(
        a.tower + b.tower, a.prefill + b.prefill, a.decode + b.decode, a.head + b.head, a.score + b.score, a.kv_bytes + b.kv_bytes
    )


def table(rows: Sequence[Row]) -> Table:
    """Kept tokens, FLOPs, KV cache and time of each row; ratios are to the first."""
    out = Table()
    out.add_column("method")
    for column in ("kept", "prefill FLOPs", "all FLOPs", "KV cache", "first token", "per token"):
        out.add_column(column, justify="right")
    base = rows[0]
    for row in rows:
        ratio = row.cost.ratio(base.cost)
        first, further = statistics.fmean(row.first), statistics.fmean(row.further)
        before, after = statistics.fmean(base.first), statistics.fmean(base.further)
        out.add_row(
            row.spec,
            f"{statistics.fmean(row.kept):.1%}",
            f"{flops(row.cost.prefill)} ({ratio['prefill']:.2f}x)",
            f"{ratio['flops']:.2f}x",
            f"{ratio['kv_bytes']:.2f}x",
            f"{first * 1e3:.1f} ms ({before / first:.2f}x faster)",
            f"{further * 1e3:.2f} ms ({after / further:.2f}x faster)",
        )
    return out


def as_dict(row: Row, base: Row) -> dict[str, Any]:
    """A row for JSON; times in seconds."""
    return {
        "method": row.spec,
        "answers": row.answers,
        "kept": row.kept,
        "flops": {**vars(row.cost), "total": row.cost.flops, "ratio": row.cost.ratio(base.cost)},
        "first_token_s": row.first,
        "per_token_s": row.further,
    }


__all__ = ["Row", "Shapes", "as_dict", "run", "table"]
