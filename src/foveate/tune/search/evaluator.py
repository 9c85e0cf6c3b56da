"""Schedules judged on examples, batch by batch; what enters a layer is kept for the trials that share it."""

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
        cache_bytes: what may be held between trials, by this process; the rest is run anew every time.
        processes: that share the batches.
        weighting: what kept tokens weigh, and whether they become means.

    Attributes:
        held_bytes: what is held now.
        most_bytes: the most that was held.
        batches: how many batches there are.
        weights: of the examples.
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
        self.depth = len(self.runner.layers)
        self.batches = -(-len(examples) // batch)
        self.held: dict[int, Prefix] = {}
        self.plain: dict[int, Tensor] = {}
        self.held_bytes = self.most_bytes = 0
        self.last: dict[int, float] = {}
        self.prefix: tuple[float, ...] = ()
        tokenize = loaded.tokenizer
        words = [
            len(tokenize(e.answer, add_special_tokens=False)["input_ids"]) + 1 for e in examples
        ]
        self.weights = torch.tensor(
            words if objective.by_word else [1] * len(examples), dtype=torch.float64
        )

    def hold(self, prefix: Keep) -> None:
        """Says that schedules to come begin with `prefix`: what enters the layer after it is kept from now on."""
        self.prefix = tuple(prefix)

    def parts(self, keep: Keep, floor: float | None = None) -> Float[Tensor, " N"] | None:
        """Each example's sum; None as soon as it is certain that quality is below `floor`."""
        same: tuple[float, ...] = self.processes.of_first(
            tuple(keep)
        )  # a Gaussian process may round differently elsewhere
        mine: dict[int, Tensor] = {}
        given_up = False
        ours = range(self.processes.index, self.batches, self.processes.count)
        for index in sorted(
            ours, key=lambda index: self.last.get(index, 0.0)
        ):  # the worst first: it may settle it
            mine[index] = self._of(index, same).cpu()
            self.last[index] = float(mine[index].sum())
            if floor is not None and self._hopeless(mine, floor):
                given_up = True
                break
        gathered = self.processes.gather(None if given_up else mine)
        if any(found is None for found in gathered):
            return None
        known = {index: values for found in gathered for index, values in found.items()}
        return torch.cat([known[index] for index in range(self.batches)])

    def quality(self, parts: Float[Tensor, " N"]) -> float:
        """The objective's value."""
        return float(parts.sum() / self.weights.sum())

    def _hopeless(self, mine: dict[int, Tensor], floor: float) -> bool:
        seen = sum(float(self.weights[self._rows(index)].sum()) for index in mine)
        best = sum(float(values.sum()) for values in mine.values())
        whole = float(self.weights.sum())
        return best + self.objective.ceiling * (whole - seen) < floor * whole - 1e-9 * whole

    def _rows(self, index: int) -> slice:
        return slice(index * self.batch, (index + 1) * self.batch)

    @torch.no_grad()
    def _of(self, index: int, keep: tuple[float, ...]) -> Tensor:
        state = self._enter(index, keep)
        examples = self.examples[self._rows(index)]
        longest = int(state.prompt.batch.answered.sum(1).max()) + 4
        method = self.runner.method(self.runner.score, keep)
        model = self.runner.model
        whole = (1.0,) * self.depth
        trial = Trial(
            state.prompt.batch,
            model.get_output_embeddings(),
            lambda: self._plain(index, state) if keep == whole else self.runner.to_end(state, keep),
            lambda: self._plain(index, state if set(state.keep) <= {1.0} else None),
            lambda: greedy(self.loaded, state.prompt.batch, method, longest),
            [e.answer for e in examples],
        )
        return self.objective.of(trial)

    def _enter(self, index: int, keep: tuple[float, ...]) -> Prefix:
        """The deepest state known on the way of `keep`; on the way, what enters the layer after `prefix` is held."""
        held = self.held.get(index)
        state = held if held is not None and held.keep == keep[: held.layer] else self._start(index)
        if held is None or held.keep != self.prefix[: held.layer]:
            self._let(index, state)  # what is held no longer serves the schedules to come
        reach = len(self.prefix) if self.prefix == keep[: len(self.prefix)] else 0
        if state.layer < reach:
            for share in keep[state.layer : reach]:
                state = self.runner.advance(state, share)
            self._let(index, state)
        return state

    def _start(self, index: int) -> Prefix:
        batch, _, _ = batch_of(self.loaded, self.examples[self._rows(index)])
        return self.runner.start(batch)

    def _plain(self, index: int, state: Prefix | None = None) -> Tensor:
        """The unpruned model's states, held if there is room."""
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
        if self.held_bytes + size > self.cache_bytes:
            return False
        self.held_bytes += size
        self.most_bytes = max(self.most_bytes, self.held_bytes)
        return True
