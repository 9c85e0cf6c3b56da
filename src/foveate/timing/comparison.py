"""One row per method: run it on prompts, in turn with the plain model, and say what it kept and cost."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from transformers.generation.streamers import BaseStreamer

from ..core.method import Method
from ..cost.architecture import Architecture, architecture_of
from ..cost.flops import Cost, cost_of_counts, cost_of_trace
from ..cost.plan import Request
from ..cost.vision import vision_flops
from ..engine.trace import Trace
from ..methods import parse
from ..models.loaded import Loaded
from .clock import Timed, generate_timed
from .race import SLACK, caps, counts, faster, in_turn

PARTS = ("first", "further")  # time to the first token, and per token after it


@dataclass
class Contestant:
    """A method as given, its methods (None: the plain model), and what came of it on each prompt.

    Attributes:
        spec: what it is called.
        methods: that are applied; None is the plain model.
        answers: of each prompt.
        first: seconds to the first token, for each prompt.
        further: seconds per token after it; NaN where there is none.
        traces: of each prompt.
        cost: of all prompts together.
        faster: times faster than the first row in "first" and "further", for each prompt: the
            median over turns.
        cap: what these cannot pass on any device.
    """

    spec: str
    methods: list[Method] | None
    answers: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    further: list[float] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    faster: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})
    cap: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})

    @property
    def kept(self) -> float:
        """Share of the visual tokens that a layer sees in the prefill, on average."""
        return statistics.fmean(trace.mean_kept() for trace in self.traces)

    def ratio(self, part: str) -> tuple[float, float] | None:
        """Times faster in a part, and its cap, mean over prompts; None where nothing was measured."""
        if not self.faster[part]:
            return None
        return statistics.fmean(self.faster[part]), statistics.fmean(self.cap[part])

    @property
    def exceeded(self) -> list[str]:
        """Parts whose ratio lies above its cap by more than noise allows: measurement errors."""
        found = {part: self.ratio(part) for part in PARTS}
        return [part for part, at in found.items() if at is not None and at[0] > SLACK * at[1]]


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
    model = loaded.model
    sizes = architecture_of(model)
    for prompt in prompts:
        tower = vision_flops(model, prompt)
        for row in rows:
            _record(row, sizes, tower, generate_timed(model, prompt, row.methods or [], new))
            tick()
        runs = {row.spec: partial(generate_timed, model, prompt, row.methods, new) for row in rows}
        times = in_turn(runs, repeats, tick, warm_up=0)
        plain = times[rows[0].spec]
        for row in rows:
            done = times[row.spec]
            row.answers.append(loaded.decode(done[0].ids))
            row.first.append(statistics.median(t.first for t in done))
            row.further.append(statistics.median(t.further for t in done))
            if row is not rows[0]:
                _compare(row, plain, done, sizes, tower / prompt["input_ids"].shape[0])


def once(
    loaded: Loaded,
    prompt: dict[str, Any],
    row: Contestant,
    new: int,
    streamer: BaseStreamer | None = None,
    count_tower: bool = True,
) -> Cost:
    """Fills in a row by one run, cold, whose times compare with nothing.

    Args:
        loaded: the model.
        prompt: one sample.
        row: of the method.
        new: longest answer.
        streamer: is given the answer's tokens as they come.
        count_tower: whether the vision tower's FLOPs are in the costs; it runs once more for that.

    Returns:
        What the unpruned model would spend on an answer of this length, in closed form.
    """
    model = loaded.model
    sizes = architecture_of(model)
    done = generate_timed(model, prompt, row.methods or [], new, streamer)
    tower = vision_flops(model, prompt) if count_tower else 0.0
    trace = _record(row, sizes, tower, done)
    row.answers.append(loaded.decode(done.ids))
    row.first.append(done.first)
    row.further.append(done.further)
    start = trace.passes[0]
    visual = int(start.total[0])
    whole = [visual] * trace.layers
    text = int(start.text[0])
    return cost_of_counts(
        sizes.shapes, whole, text=text, new_tokens=len(done.ids), visual=visual, tower=tower
    )


def _record(row: Contestant, sizes: Architecture, tower: float, done: Timed) -> Trace:
    """Takes in what a run under `apply` kept and cost."""
    if done.trace is None:
        raise ValueError("the run was not recorded; expected one under apply")
    row.traces.append(done.trace)
    row.cost += cost_of_trace(sizes.shapes, done.trace, tower=tower)
    return done.trace


def _compare(
    row: Contestant,
    plain: Sequence[Timed],
    done: Sequence[Timed],
    sizes: Architecture,
    tower: float,
) -> None:
    """Takes in how many times faster a row was than the plain model on one prompt, and the caps."""
    trace = row.traces[-1]
    start = trace.passes[0]
    new = min(len(plain[0].ids), len(done[0].ids))
    text = round(start.text.double().mean().item())
    asked = Request(text, round(start.total.double().mean().item()), new, len(start.text))
    most = caps(sizes, asked, tower, counts(trace, 0), counts(trace, -1))
    for part in PARTS if new > 1 else PARTS[:1]:
        theirs, ours = ([getattr(timed, part) for timed in runs] for runs in (plain, done))
        row.faster[part].append(faster(theirs, ours))
        row.cap[part].append(most[part])


def as_dict(row: Contestant, base: Contestant) -> dict[str, Any]:
    """A row for JSON; times in seconds."""
    return {
        **measured(row, base.cost),
        "faster": row.faster,
        "cap": row.cap,
        "exceeded": row.exceeded,
    }


def measured(row: Contestant, unpruned: Cost) -> dict[str, Any]:
    """A row for JSON, without ratios of times."""
    return {
        "method": row.spec,
        "answers": row.answers,
        "kept": row.kept,
        "flops": {**vars(row.cost), "total": row.cost.flops, "ratio": row.cost.ratio(unpruned)},
        "first_token_s": row.first,
        "per_token_s": row.further,
    }
