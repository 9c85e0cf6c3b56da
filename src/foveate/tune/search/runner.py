"""Trials of a search: schedules of one ranking, on the engine's replay.

What trials share is run once: the layers before the first in which they differ, and the ranking
there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...artefacts.weighting import UNWEIGHED, Weighting
from ...core.contract import Score
from ...core.method import Method
from ...core.schedules import PerLayer
from ...core.view import View
from ...engine.checks import check_weights
from ...engine.replay.replay import Replay
from ..train.dyrate.rollout import Batch
from .prefix import Prefix


class Runner:
    """Runs batches of one model under schedules of one ranking.

    Args:
        model: of a supported family; frozen.
        score: ranks the tokens.
        within: as `Method` has it.
        weighting: what kept tokens weigh, and whether they become means.

    Raises:
        ValueError: a model or weights that `apply` would refuse.
    """

    def __init__(
        self,
        model: Any,
        score: Score,
        within: Literal["sample", "image"] = "sample",
        weighting: Weighting = UNWEIGHED,
    ) -> None:
        self.score = score
        self.within = within
        self.weighting = weighting
        every = self.method(score, (1.0,))
        self.replay = Replay(model, every.needs)
        check_weights(self.replay.anatomy.decoder, [every])
        self.depth = len(self.replay.layers)

    @torch.no_grad()
    def start(self, batch: Batch) -> Prefix:
        """The batch, as it enters layer 0."""
        return Prefix(self.replay.start(batch.inputs, batch.prompt), batch)

    @torch.no_grad()
    def reach(self, state: Prefix, keep: Sequence[float]) -> Prefix:
        """Goes on to the layer after those that `keep` has shares of.

        Each layer drops down to its share of the visual tokens before it runs.
        """
        at = self.replay.run(state.at, [self._trial(state, keep)], len(keep))
        return Prefix(at, state.batch, tuple(keep))

    @torch.no_grad()
    def to_end(
        self,
        state: Prefix,
        keep: Sequence[float],
        watch: Callable[[View], None] | None = None,
    ) -> Float[Tensor, "B S D"]:
        """Normalised states that predict the answers' words.

        Runs the remaining layers first, each with its share of `keep`.
        """
        return self.replay.finish(state.at, [self._trial(state, keep)], watch)

    def method(self, score: Score, keep: Sequence[float]) -> Method:
        """What `apply` would be given for these shares, ranked by `score`."""
        return self.weighting.on(Method(score, PerLayer(tuple(keep)), within=self.within))

    def _trial(self, state: Prefix, keep: Sequence[float]) -> Method:
        return self.method(_Ranked(self.score, state), keep)


@dataclass(frozen=True)
class _Ranked(Score):
    """A score that is computed once for all trials that start from one state, before its layer."""

    score: Score
    state: Prefix

    def take_notice(self, view: View) -> None:
        """As the score; what it noticed for another trial serves this one."""
        here = view.layer == self.state.layer
        if here and self.state.noticed:
            view.notes.update(self.state.noticed)
            return
        super().take_notice(view)
        if here:
            self.state.noticed.update(view.notes)

    def __call__(self, view: View, counts: Int[Tensor, B]) -> Float[Tensor, "B N"]:
        """As the score; if it depends on the counts, it is computed for each of them."""
        if view.layer != self.state.layer:
            return self.score(view, counts)
        key = tuple(counts.tolist()) if self.score.needs.counts else None
        if key not in self.state.found:
            self.state.found[key] = self.score(view, counts)
        return self.state.found[key]
