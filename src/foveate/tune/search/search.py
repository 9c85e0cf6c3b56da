"""A whole search: calibration, strategy, held-out report, and the file that comes of it."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ...artefacts.schedules import ScheduleFile
from ...artefacts.weighting import UNWEIGHED, Weighting
from ...core.contract import Score
from ...core.method import Method
from ...cost.flops import shapes
from ...engine.anatomy import anatomy_of
from ...engine.apply import apply
from ...eval.intervals import weighted
from ...methods import score_of
from ...methods.schedule import schedule as method_of
from ...models.loaded import Loaded
from ...processes import ALONE, Processes
from ...versions import versions
from ..examples import Example
from ..fitprune import Recipe
from ..train.dyrate.rollout import batch_of
from .costs import Sizes, cost_of, measure_layer, ratios
from .evaluator import Evaluator
from .journal import Journal
from .objective import OBJECTIVES
from .problem import RECIPE, Problem, ReportTrial
from .runner import Runner
from .strategies import search, settled


@dataclass(frozen=True)
class Search:
    """Objective x cost x strategy, and the numbers of a search.

    Attributes:
        algorithm: a strategy, by name.
        knobs: the strategy's own; what is not given is its default.
        objective: one of `objective.OBJECTIVES`.
        cost: what a budget is a share of: keep (mean share of tokens), flops, kv (bytes) or seconds
            (measured).
        ranking: by what tokens are ranked, as `methods.score_of` takes it: last, mix, dart...
        within: as `Method` has it.
        first: the first layer before which tokens may leave.
        batch: examples per forward.
        cache_gb: what each process may hold between trials.
        seed: of strategies that draw, and of the bootstrap.
        weighting: what kept tokens weigh, and whether they become means, in every trial and in the file.
        by_kind: whether quality is that of the kind of prompt that loses most, in place of the mean.
    """

    algorithm: str = "gsearch"
    knobs: dict[str, Any] = field(default_factory=dict)
    objective: str = "kl"
    cost: str = "flops"
    ranking: str = "last"
    within: Literal["sample", "image"] = "sample"
    first: int = 2
    batch: int = 8
    cache_gb: float = 2.0
    seed: int = 0
    weighting: Weighting = UNWEIGHED
    by_kind: bool = False

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(
                f"unknown objective {self.objective!r}; expected one of {', '.join(OBJECTIVES)}"
            )
        if self.first < self.score.needs.earliest:
            raise ValueError(
                f"got first layer {self.first}; ranking {self.ranking!r} goes by the layer before, "
                f"so start at layer {self.score.needs.earliest} or more"
            )
        if self.batch < 1 or self.cache_gb < 0:
            raise ValueError(
                f"batch={self.batch}, cache_gb={self.cache_gb}; expected 1 or more, and 0 or more"
            )

    @property
    def score(self) -> Score:
        """What ranks the tokens."""
        return score_of(self.ranking)


@dataclass(frozen=True)
class Data:
    """What a search learns from, and what it is judged on; `name` says where that came from."""

    name: str
    calibration: Sequence[Example]
    held_out: Sequence[Example]

    def facts(self) -> dict[str, Any]:
        """How many examples there are, and a hash of their prompts and answers."""
        texts = [_texts(self.calibration), _texts(self.held_out)]
        digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]
        return {
            "name": self.name,
            "calibration": len(self.calibration),
            "held out": len(self.held_out),
            "sha256": digest,
        }


def _texts(examples: Sequence[Example]) -> list[tuple[Any, str, str]]:
    """What is said in the examples."""
    return [(example.earlier, example.prompt, example.answer) for example in examples]


def find_schedule(
    loaded: Loaded,
    plan: Search,
    data: Data,
    name: str = "",
    record: Path | None = None,
    processes: Processes = ALONE,
    report: ReportTrial | None = None,
) -> ScheduleFile:
    """Searches a schedule, and judges it on held-out examples.

    Args:
        loaded: a model of a supported family with its processor.
        plan: what to search, and how.
        data: calibration and held-out examples.
        name: of the model, for the record.
        record: journal of the trials; with it, an interrupted search goes on where it was.
        processes: that share the work, each with its own copy of the model.
        report: called with a line before every trial that is run.

    Raises:
        ValueError: a plan that fits no such model or data, a budget out of reach, or another
            search's record.
    """
    plan = replace(plan, knobs=settled(plan.algorithm, plan.knobs))
    facts = model_facts(loaded.model, name)
    journal = _journal(plan, data, facts, record, processes)
    judge = _evaluator(loaded, plan, data.calibration, plan.objective, processes)
    sizes = Sizes.of(loaded, data.calibration, plan.batch)
    problem = _problem(loaded, plan, data, sizes, judge, journal, report)
    keep = search(plan.algorithm, problem, **plan.knobs)
    found = _file(plan, data, facts, keep, ratios(shapes(loaded.model), sizes, keep))
    if plan.cost == "seconds":
        method = method_of(found)
        found.costs["layer seconds, predicted"] = problem.cost(keep)
        found.costs["prefill seconds, measured"] = journal.once(
            "timed", lambda: time_prefill(loaded, data.calibration[0], method)
        )
    found.scores.update(_scores(loaded, plan, data, problem, keep, processes))
    found.search.update(_spent(problem, plan, data, judge, sizes))
    return found


def _journal(
    plan: Search, data: Data, model: dict[str, Any], record: Path | None, together: Processes
) -> Journal:
    """The record of this very search.

    The first process has the file, and all know what is in it.
    """
    facts = {"model": model, "data": data.facts(), **asdict(plan)}
    facts.pop("cache_gb")  # the same is found with any
    if not plan.weighting.facts:
        facts.pop("weighting")  # so that records of before weights and means were go on
    if not plan.by_kind:
        facts.pop("by_kind")
    journal = Journal(record if together.index == 0 else None, facts)
    journal.known = together.of_first(journal.known)
    return journal


def _file(
    plan: Search,
    data: Data,
    facts: dict[str, Any],
    keep: tuple[float, ...],
    costs: dict[str, float],
) -> ScheduleFile:
    """The schedule with what is known of it before it is judged."""
    stated = ("ranking", "within", "seed", "weighting")  # each has its own place in the file
    return ScheduleFile(
        keep=keep,
        ranking=plan.ranking,
        within=plan.within,
        model=facts,
        algorithm={k: v for k, v in asdict(plan).items() if k not in stated},
        seed=plan.seed,
        data=data.facts(),
        costs=costs,
        versions=versions(),
        weighting=plan.weighting,
    )


def _problem(
    loaded: Loaded,
    plan: Search,
    data: Data,
    sizes: Sizes,
    judge: Evaluator,
    journal: Journal,
    report: ReportTrial | None,
) -> Problem:
    """The calibration examples as a problem."""

    def seconds() -> list[float]:
        runner = Runner(loaded.model, plan.score, weighting=plan.weighting)
        mine = measure_layer(runner, loaded, data.calibration[0])
        found: list[float] = judge.processes.of_first(mine)
        return found

    @cache
    def recipe() -> Recipe:
        batches = []
        for start in range(0, len(data.calibration), plan.batch):
            prompts = _prompts(loaded, data.calibration[start : start + plan.batch])
            if prompts.get("pixel_values") is not None:
                batches.append(prompts)
        return Recipe(loaded.model, batches, plan.first)

    cost = cost_of(plan.cost, loaded.model, sizes, lambda: journal.once("seconds", seconds))
    return Problem(
        judge=judge,
        cost=cost,
        layers=judge.depth,
        first=plan.first,
        journal=journal,
        seed=plan.seed,
        report=report,
        recipe=lambda tolerance: recipe().keep(tolerance),
    )


def _prompts(loaded: Loaded, examples: Sequence[Example]) -> dict[str, Tensor]:
    """The model's arguments for prompts without their answers."""
    batch, _, _ = batch_of(loaded, examples)
    return batch.prompts


def model_facts(model: Any, name: str) -> dict[str, Any]:
    """What a model is known by: a schedule is refused by another family or depth."""
    text = anatomy_of(model).decoder.config
    return {
        "name": name,
        "family": model.config.model_type,
        "layers": text.num_hidden_layers,
        "decoder": text.model_type,
        "hidden": text.hidden_size,
        "heads": text.num_attention_heads,
        "revision": getattr(model.config, "_commit_hash", None),
    }


def _evaluator(
    loaded: Loaded, plan: Search, examples: Sequence[Example], objective: str, together: Processes
) -> Evaluator:
    """A judge of schedules on these examples, by the objective of this name."""
    return Evaluator(
        loaded,
        examples,
        OBJECTIVES[objective],
        plan.score,
        plan.within,
        batch=plan.batch,
        cache_bytes=plan.cache_gb * 1e9,
        processes=together,
        weighting=plan.weighting,
        by_kind=plan.by_kind,
    )


def _scores(
    loaded: Loaded,
    plan: Search,
    data: Data,
    problem: Problem,
    keep: Sequence[float],
    together: Processes,
) -> dict[str, Any]:
    """Quality of the schedule and unpruned, and their paired difference.

    All have 95 % intervals over examples. Held-out examples are judged by the search's objective
    and by likelihood.
    """
    out: dict[str, Any] = {"objective": plan.objective}
    weights = problem.judge.weights
    ours = problem.parts(keep)
    plain = problem.parts(problem.unpruned)
    out["calibration"] = compared(ours, plain, weights, plan.seed)
    for objective in dict.fromkeys((plan.objective, "likelihood")):
        judge = _evaluator(loaded, plan, data.held_out, objective, together)
        pruned = judge.parts(keep)
        unpruned = judge.parts(problem.unpruned)
        if pruned is not None and unpruned is not None:  # without a floor no trial is given up
            title = "held out" if objective == plan.objective else f"held out, {objective}"
            out[title] = compared(pruned, unpruned, judge.weights, plan.seed)
            if plan.by_kind and objective == plan.objective:
                out["held out, by kind"] = _by_kind(data.held_out, pruned - unpruned, judge.weights)
    return out


def _by_kind(
    examples: Sequence[Example], gaps: Float[Tensor, " N"], weights: Float[Tensor, " N"]
) -> dict[str, float]:
    """What each kind of prompt loses or gains on average."""
    found = {}
    for kind in dict.fromkeys(example.kind for example in examples):
        ours = [index for index, example in enumerate(examples) if example.kind == kind]
        found[kind] = float(gaps[ours].sum() / weights[ours].sum())
    return found


def compared(
    ours: Float[Tensor, " N"], plain: Float[Tensor, " N"], weights: Float[Tensor, " N"], seed: int
) -> dict[str, dict[str, float]]:
    """Sums over weights: of ours, of plain, and of ours minus plain.

    Each has its bootstrap interval over examples.
    """
    sums = {"schedule": ours, "unpruned": plain, "difference": ours - plain}
    below = weights.double().numpy()
    found = {}
    for name, above in sums.items():
        found[name] = asdict(weighted(above.double().numpy(), below, seed))
    return found


def _spent(
    problem: Problem, plan: Search, data: Data, judge: Evaluator, sizes: Sizes
) -> dict[str, Any]:
    """What searching cost, in whole passes over the calibration examples.

    For comparison, it also says what naive searches would have cost.
    """
    spent = problem.spent()
    layers = len(data.calibration) * problem.layers  # of one pass
    rows = sum(times * sum(size) for size, times in sizes.counts) * problem.layers  # of one pass
    trials = [f for f in problem.journal.known.values() if isinstance(f, dict) and "spent" in f]
    out: dict[str, Any] = {
        "trials": len(trials),
        "passes": spent["layers"] / layers,
        "passes, by tokens": spent["rows"] / rows,
        "through the tower": spent["towers"] / len(data.calibration),
        "held GB at most": judge.most_bytes / 1e9,
        "passes if every trial ran whole": len(trials),
    }
    recipes = sum(key.startswith(RECIPE) for key in problem.journal.known)
    if recipes:
        # All but the first run with fewer tokens than all.
        out["passes for statistics, at most"] = 1 + recipes
    if plan.algorithm == "gsearch" and plan.knobs["variant"] == "bisect":
        searched = len(range(plan.first, problem.layers, plan.knobs["stride"]))
        halvings = plan.knobs["grid"].bit_length()
        out["passes of bisecting the whole grid at every layer"] = 1 + searched * halvings
    return out


@torch.no_grad()
def time_prefill(loaded: Loaded, example: Example, method: Method, repeats: int = 7) -> float:
    """Seconds of a prefill under the method over those of the unpruned model.

    Both are medians, measured in turn.
    """
    inputs = _prompts(loaded, [example])
    times: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(repeats + 1):
        for pruned in (True, False):
            with apply(loaded.model, *([method] if pruned else [])):
                begin = time.perf_counter()
                loaded.model(**inputs, use_cache=True, logits_to_keep=1).logits.cpu()
            if turn:  # the first turn warms up
                times[pruned].append(time.perf_counter() - begin)
    return statistics.median(times[True]) / statistics.median(times[False])
