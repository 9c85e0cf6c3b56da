"""One row per method: run it on prompts, in turn with the plain model, and say what it kept and cost."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.method import Method
from ..cost.flops import Cost, cost_of_trace, shapes
from ..cost.vision import vision_flops
from ..engine.trace import Trace
from ..methods import parse
from ..models.loaded import Loaded
from .clock import Timed, generate_timed


@dataclass
class Contestant:
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


def rows_of(specs: Iterable[str]) -> list[Contestant]:
    """The unpruned model, then every method once.

    Raises:
        ValueError: a spec is wrong.
    """
    return [
        Contestant("unpruned", None),
        *(Contestant(spec, parse(spec)) for spec in dict.fromkeys(specs)),
    ]


def run(
    loaded: Loaded,
    prompts: Sequence[dict[str, Any]],
    rows: list[Contestant],
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


def as_dict(row: Contestant, base: Contestant) -> dict[str, Any]:
    """A row for JSON; times in seconds."""
    return {
        "method": row.spec,
        "answers": row.answers,
        "kept": row.kept,
        "flops": {**vars(row.cost), "total": row.cost.flops, "ratio": row.cost.ratio(base.cost)},
        "first_token_s": row.first,
        "per_token_s": row.further,
    }
