"""One row per method: run it on prompts, in turn with the plain model, and say what it kept and cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.table import Table

from ..core.method import Method
from ..engine.trace import Trace
from ..measure.cost import Cost, cost_of_trace, shapes
from ..measure.timing import Timed, generate_timed
from ..measure.vision import vision_flops
from ..methods import parse
from ..models.loaded import Loaded
from .output import flops


@dataclass
class Row:
    """A method as given, its methods (None: the plain model), and what came of it on each prompt."""

    spec: str
    methods: list[Method] | None
    answers: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    further: list[float] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)

    @property
    def kept(self) -> float:
        """Share of the visual tokens that a layer sees in the prefill, on average."""
        return statistics.fmean(trace.mean_kept() for trace in self.traces)


def rows_of(specs: Iterable[str]) -> list[Row]:
    """The unpruned model, then every method once.

    Raises:
        ValueError: a spec is wrong.
    """
    return [Row("unpruned", None), *(Row(spec, parse(spec)) for spec in dict.fromkeys(specs))]


def run(
    loaded: Loaded,
    prompts: Sequence[dict[str, Any]],
    rows: list[Row],
    new: int,
    repeats: int,
    tick: Callable[[], None],
) -> None:
    """Fills in `rows`: every method on every prompt, `repeats` times in turn after a warm-up; medians are kept.

    The warm-up of the unpruned row runs under an empty `apply`, which records what it costs; its timed runs are
    the plain model, without a hook.
    """
    model, shape = loaded.model, shapes(loaded.model)
    for prompt in prompts:
        tower = vision_flops(model, prompt)
        times: dict[str, list[Timed]] = {row.spec: [] for row in rows}
        for row in rows:
            warm = generate_timed(model, prompt, row.methods or [], new)
            if warm.trace is not None:
                row.traces.append(warm.trace)
                row.cost += cost_of_trace(shape, warm.trace, tower=tower)
            tick()
        for _ in range(repeats):
            for row in rows:
                times[row.spec].append(generate_timed(model, prompt, row.methods, new))
                tick()
        for row in rows:
            done = times[row.spec]
            row.answers.append(loaded.decode(done[0].ids))
            row.first.append(statistics.median(t.first for t in done))
            row.further.append(statistics.median(t.further for t in done))


def table(rows: Sequence[Row]) -> Table:
    """Kept tokens, FLOPs, KV cache and time of each row; beside the first, as ratios to it. Fits 80 columns."""
    legend = "x: of unpruned FLOPs and KV cache, computed; times faster, measured here"
    out = Table(caption=legend, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    out.add_column("method", overflow="fold")
    for column in ("kept", "prefill", "FLOPs", "KV", "first token", "per token"):
        out.add_column(column, justify="right", no_wrap=True)
    base = rows[0]
    before, after = statistics.fmean(base.first), statistics.fmean(base.further)
    for row in rows:
        ratio = row.cost.ratio(base.cost)
        first, further = statistics.fmean(row.first), statistics.fmean(row.further)
        single = math.isnan(further)  # one new token comes out of the prefill, and no time is spent per token
        if row is base:
            sizes = [flops(row.cost.prefill), flops(row.cost.flops), f"{row.cost.kv_bytes / 2**20:.1f} MB"]
            times = [f"{first * 1e3:.0f} ms", "-" if single else f"{further * 1e3:.1f} ms"]
        else:
            sizes = [f"{ratio[key]:.2f}x" for key in ("prefill", "flops", "kv_bytes")]
            times = [
                f"{first * 1e3:.0f} ms {before / first:.2f}x",
                "-" if single else f"{further * 1e3:.1f} ms {after / further:.2f}x",
            ]
        out.add_row(row.spec.replace(",", ", "), f"{row.kept:.0%}", *sizes, *times)
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
