"""Schedules judged on examples, batch by batch.

What enters a layer is kept for the trials that share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ...artefacts.weighting import UNWEIGHED, Weighting
from ...core.contract import Score
from ...models.loaded import Loaded
from ...processes import ALONE, Processes
from ..examples import Example
from ..train.dyrate.rollout import batch_of
from .objective import Objective, Trial, greedy
from .prefix import Prefix
from .runner import Runner

Keep = Sequence[float]


class Evaluator:
    """Quality of schedules on some examples.

    Args:
        model: of a supported family; frozen.
        processor: the model's.
        examples: prompts with answers.
        objective: what quality is.
        score: ranks the tokens.
        within: as `Method` has it.
        batch: examples per forward.
        cache_bytes: what may be held between trials, by this process; the rest is run anew every
            time.
        processes: that share the batches.
        weighting: what kept tokens weigh, and whether they become means.

    Attributes:
        held_bytes: what is held now.
        most_bytes: the most that was held.
        batches: how many batches there are.
        weights: of the examples.
        held: of each batch, the state that trials may start from.
        plain: of each batch, the unpruned model's states.
        last: of each batch, the sum that its last trial came to.
        prefix: what the schedules to come begin with.
    """

    def __init__(
        self,
        loaded: Loaded,
        examples: Sequence[Example],
        objective: Objective,
        score: Score,
        within: Literal["sample", "image"] = "sample",
        batch: int = 8,
        cache_bytes: float = 2e9,
        processes: Processes = ALONE,
        weighting: Weighting = UNWEIGHED,
        by_kind: bool = False,
    ) -> None:
        if not examples:
            raise ValueError("got no examples to judge schedules on; give at least one")
        self.loaded = loaded
        self.examples = examples
        self.objective = objective
        self.batch = batch
        self.runner = Runner(loaded.model, score, within, weighting)
        self.processes = processes
        self.cache_bytes = cache_bytes
        self.depth = self.runner.depth
        self.batches = -(-len(examples) // batch)
        self.held: dict[int, Prefix] = {}
        self.plain: dict[int, Tensor] = {}
        self.held_bytes = 0
        self.most_bytes = 0
        self.last: dict[int, float] = {}
        self.prefix: tuple[float, ...] = ()
        weights = [1] * len(examples)
        if objective.by_word:
            answers = (loaded.tokenizer(e.answer, add_special_tokens=False) for e in examples)
            weights = [len(answer["input_ids"]) + 1 for answer in answers]  # 1: end of sequence
        self.weights = torch.tensor(weights, dtype=torch.float64, device="cpu")
        kinds = list(dict.fromkeys(e.kind for e in examples))
        group = [kinds.index(e.kind) if by_kind else 0 for e in examples]
        self.groups = torch.tensor(group, dtype=torch.long, device="cpu")

    def hold(self, prefix: Keep) -> None:
        """Says that schedules to come begin with `prefix`.

        What enters the layer after it is kept from now on.
        """
        self.prefix = tuple(prefix)

    def parts(
        self, keep: Keep, floors: Sequence[float] | None = None
    ) -> Float[Tensor, " N"] | None:
        """Each example's sum; None as soon as it is certain that a group's mean is below its floor."""
        # A Gaussian process may round differently elsewhere, so all take the first's schedule.
        same: tuple[float, ...] = self.processes.of_first(tuple(keep))
        mine: dict[int, Tensor] = {}
        given_up = False
        ours = range(self.processes.index, self.batches, self.processes.count)
        worst_first = sorted(ours, key=lambda index: self.last.get(index, 0.0))
        for index in worst_first:  # the worst batches are the likeliest to show that it fails
            mine[index] = self._of(index, same).cpu()
            self.last[index] = float(mine[index].sum())
            if floors is not None and self._hopeless(mine, floors):
                given_up = True
                break
        gathered = self.processes.gather(None if given_up else mine)
        if any(found is None for found in gathered):
            return None
        known: dict[int, Tensor] = {}
        for found in gathered:
            known.update(found)
        return torch.cat([known[index] for index in range(self.batches)])

    def quality(self, parts: Float[Tensor, " N"]) -> float:
        """The objective's value."""
        return float(parts.sum() / self.weights.sum())

    def _hopeless(self, mine: dict[int, Tensor], floors: Sequence[float]) -> bool:
        """Whether some group misses its floor even if all batches not in `mine` reach the ceiling."""
        for group, floor in enumerate(floors):
            ours = self.groups == group
            whole = float(self.weights[ours].sum())
            seen = found = 0.0
            for index, values in mine.items():
                here = ours[self._rows(index)]
                seen += float(self.weights[self._rows(index)][here].sum())
                found += float(values[here].sum())
            best = found + self.objective.ceiling * (whole - seen)
            if best < floor * whole - 1e-9 * whole:
                return True
        return False

    def _rows(self, index: int) -> slice:
        """Which examples a batch has."""
        return slice(index * self.batch, (index + 1) * self.batch)

    @torch.no_grad()
    def _of(self, index: int, keep: tuple[float, ...]) -> Tensor:
        """The objective's sums (B) of one batch under a schedule."""
        state = self._enter(index, keep)
        examples = self.examples[self._rows(index)]
        batch = state.batch
        longest = int(batch.answered.sum(1).max()) + 4  # words of a greedy answer
        method = self.runner.method(self.runner.score, keep)

        def run() -> Tensor:
            if keep == (1.0,) * self.depth:
                return self._plain(index, state)
            return self.runner.to_end(state, keep)

        def run_plain() -> Tensor:
            dropped = any(share < 1 for share in state.keep)
            return self._plain(index, None if dropped else state)

        trial = Trial(
            batch=batch,
            head=self.loaded.anatomy.logits,
            run=run,
            run_plain=run_plain,
            said=lambda: greedy(self.loaded, batch, method, longest),
            wanted=[e.answer for e in examples],
        )
        return self.objective.of(trial)

    def _enter(self, index: int, keep: tuple[float, ...]) -> Prefix:
        """The deepest state known on the way of `keep`.

        Where `keep` begins with `prefix`, it is run as far as that, and what enters the layer after
        it is held.
        """
        held = self.held.get(index)
        state = held if held is not None and held.keep == keep[: held.layer] else self._start(index)
        if held is None or held.keep != self.prefix[: held.layer]:
            self._let(index, state)  # what is held no longer serves the schedules to come
        reach = len(self.prefix) if self.prefix == keep[: len(self.prefix)] else 0
        if state.layer < reach:
            state = self.runner.reach(state, keep[:reach])
            self._let(index, state)
        return state

    def _start(self, index: int) -> Prefix:
        """What enters layer 0, of a batch."""
        batch, _, _ = batch_of(self.loaded, self.examples[self._rows(index)])
        return self.runner.start(batch)

    def _plain(self, index: int, state: Prefix | None = None) -> Tensor:
        """The unpruned model's states, held if there is room.

        They are run from `state`, in which nothing has been dropped; without it, from the start.
        """
        if index in self.plain:
            return self.plain[index]
        out = self.runner.to_end(state or self._start(index), (1.0,) * self.depth)
        if self._room(out.numel() * out.element_size()):
            self.plain[index] = out
        return out

    def _let(self, index: int, state: Prefix) -> None:
        """Holds a batch's state in place of the one before, if there is room."""
        old = self.held.pop(index, None)
        self.held_bytes -= 0 if old is None else old.bytes
        if self._room(state.bytes):
            self.held[index] = state

    def _room(self, size: int) -> bool:
        """Takes so many bytes of the room that there is; False if they do not fit."""
        if self.held_bytes + size > self.cache_bytes:
            return False
        self.held_bytes += size
        self.most_bytes = max(self.most_bytes, self.held_bytes)
        return True
