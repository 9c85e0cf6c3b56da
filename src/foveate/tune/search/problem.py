"""What a strategy sees of a search: how good a schedule is, whether it passes, what it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from .costs import CostOf
from .evaluator import Evaluator
from .journal import Journal

Keep = Sequence[float]
ReportTrial = Callable[[str], None]  # gets the schedule about to be run
RECIPE = "recipe"  # begins the journal's keys of what statistics gave


@runtime_checkable
class Judge(Protocol):
    """What a problem needs of an evaluator.

    Attributes:
        weights: of the examples.
        groups: of each example a number from 0 on: examples of one group are averaged together.
    """

    weights: torch.Tensor
    groups: torch.Tensor

    def hold(self, prefix: Keep) -> None:
        """Schedules to come begin with `prefix`."""
        ...

    def parts(self, keep: Keep, floors: Sequence[float] | None = None) -> torch.Tensor | None:
        """Each example's sum, or None if a group's mean is certainly below its floor."""
        ...


class Problem:
    """A search under way.

    Quality is the mean over examples. Where the judge has several groups, as kinds of questions, it
    is that of the group that has lost most: its mean less the unpruned model's.

    Strategies are deterministic in what they get from here, so a journal is all a restart needs.

    Args:
        judge: of the calibration examples.
        cost: of a schedule over unpruned, in [0, 1]; never falls when more is kept.
        layers: of the decoder.
        first: the first layer before which tokens may leave.
        journal: what was found before.
        seed: of strategies that draw.
        report: called with a line before every trial that is run.
        recipe: as `tune.fitprune.Recipe.keep`, for strategies that go by statistics.

    Raises:
        ValueError: `first` outside the decoder.

    Attributes:
        trials: how many schedules were asked for, the unpruned included.
        fresh: how many of them were run now.
    """

    def __init__(
        self,
        judge: Judge,
        cost: CostOf,
        layers: int,
        first: int = 2,
        journal: Journal | None = None,
        seed: int = 0,
        report: ReportTrial | None = None,
        recipe: Callable[[float], Sequence[float]] | None = None,
    ) -> None:
        if not 0 <= first < layers:
            raise ValueError(
                f"the search starts at layer {first}; "
                f"expected a layer of the decoder, 0 to {layers - 1}"
            )
        self.judge = judge
        self._cost = cost
        self.layers = layers
        self.first = first
        self.seed = seed
        self.journal = journal or Journal(None, {})
        self.report = report
        self._recipe = recipe
        self.trials = 0
        self.fresh = 0

    @property
    def unpruned(self) -> tuple[float, ...]:
        """The schedule that keeps all."""
        return (1.0,) * self.layers

    @property
    def full(self) -> float:
        """Quality of the unpruned model."""
        return self.quality(self.unpruned)

    def cost(self, keep: Keep) -> float:
        """Of a schedule, over unpruned."""
        return self._cost(keep)

    def hold(self, prefix: Keep) -> None:
        """Says that the schedules to come begin with `prefix`.

        What enters the layer after it is then run once.
        """
        self.judge.hold(prefix)

    def quality(self, keep: Keep) -> float:
        """Of a schedule, on the calibration examples; higher is better."""
        return self._quality(self._found(keep, None))

    def passes(self, keep: Keep, floor: float) -> bool:
        """Whether quality is at least `floor`; stops early where it cannot be."""
        found = self._found(keep, floor)
        return found["parts"] is not None and self._quality(found) >= floor

    def _quality(self, found: dict[str, Any]) -> float:
        """The objective's value, of a trial that was not given up."""
        parts = torch.tensor(found["parts"], dtype=torch.float64, device="cpu")
        if not self._grouped:
            return float(parts.sum() / self.judge.weights.sum())
        plain = self._found(self.unpruned, None)["parts"]
        before = self._means(torch.tensor(plain, dtype=torch.float64, device="cpu"))
        return min(ours - was for ours, was in zip(self._means(parts), before, strict=True))

    @property
    def _grouped(self) -> bool:
        return bool(self.judge.groups.any())

    def _means(self, parts: torch.Tensor) -> list[float]:
        """Each group's."""
        groups = self.judge.groups
        return [
            float(parts[groups == group].sum() / self.judge.weights[groups == group].sum())
            for group in range(int(groups.max()) + 1)
        ]

    def _floors(self, floor: float) -> list[float]:
        """The floor of every group, of a floor of quality."""
        if not self._grouped:
            return [floor]
        plain = self._found(self.unpruned, None)["parts"]
        before = self._means(torch.tensor(plain, dtype=torch.float64, device="cpu"))
        return [was + floor for was in before]

    def parts(self, keep: Keep) -> torch.Tensor:
        """Each calibration example's sum."""
        return torch.tensor(self._found(keep, None)["parts"], dtype=torch.float64, device="cpu")

    def recipe(self, tolerance: float) -> Sequence[float]:
        """What each layer keeps if it may miss this share of its attention.

        Raises:
            ValueError: there is no model behind this problem.
        """
        if self._recipe is None:
            raise ValueError(
                "this search has no model behind it, so there are no statistics of attention"
            )
        make = self._recipe
        found: list[float] = self.journal.once(
            f"{RECIPE} {tolerance:.9g}", lambda: list(make(tolerance))
        )
        return found

    def _found(self, keep: Keep, floor: float | None) -> dict[str, Any]:
        """What a trial found, from the journal or run now.

        Returns:
            `parts`: each example's sum, or None if the trial was given up below `floor`; and
            `spent`: what it ran, as `_tally` counts.
        """
        # A trial that was given up answers to its own floor alone; one that ran whole, to any.
        whole = " ".join(f"{share:.6g}" for share in keep)
        at_least = whole if floor is None else f"{whole} >= {floor:.9g}"
        self.trials += 1
        for key in (whole, at_least):
            if key in self.journal.known:
                return self.journal.known[key]
        if self.report is not None:
            self.report(whole)
        self.fresh += 1
        before = _tally(self.judge)
        parts = self.judge.parts(keep, None if floor is None else self._floors(floor))
        spent = [now - then for now, then in zip(_tally(self.judge), before, strict=True)]
        found = {"parts": None if parts is None else parts.tolist(), "spent": spent}
        self.journal.add(at_least if parts is None else whole, found)
        return found

    def spent(self) -> dict[str, int]:
        """What all trials so far have run, as the engine's `Tally` has it."""
        sums = {"layers": 0, "rows": 0, "towers": 0}
        for found in self.journal.known.values():
            if isinstance(found, dict) and "spent" in found:  # a trial, no measurement
                layers, rows, towers = found["spent"]
                sums["layers"] += layers
                sums["rows"] += rows
                sums["towers"] += towers
        return sums


def _tally(judge: Judge) -> tuple[int, int, int]:
    """What the judge has run (layers, rows, towers), all processes together."""
    if not isinstance(judge, Evaluator):
        return 0, 0, 0
    mine = judge.runner.replay.tally
    everyone = judge.processes.gather((mine.layers, mine.rows, mine.towers))
    layers, rows, towers = (sum(column) for column in zip(*everyone, strict=True))
    return layers, rows, towers
