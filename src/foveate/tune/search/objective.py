"""How good a schedule is: objectives, each from a trial on a batch to a sum for each sample.

Shapes: B samples, S steps, W words of all answers together, D width of the states, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Float
from torch import Tensor

from ...core.method import Method
from ...engine.apply import apply
from ...eval.metrics import PER_ANSWER, of_one
from ...models.loaded import Loaded
from ..train.dyrate.rollout import Batch


@dataclass(frozen=True)
class Trial:
    """A schedule on a batch; what an objective does not ask for is not run.

    Attributes:
        batch: prompts with their answers.
        head: from normalised states to logits.
        run: normalised states (B S D) under the schedule, teacher forced; row s predicts the
            answer's word s.
        run_plain: those of the unpruned model.
        said: greedy answers under the schedule.
        wanted: the right answers.
    """

    batch: Batch
    head: Callable[[Tensor], Tensor]
    run: Callable[[], Tensor]
    run_plain: Callable[[], Tensor]
    said: Callable[[], list[str]]
    wanted: Sequence[str]

    @cached_property
    def logits(self) -> Float[Tensor, "W V"]:
        """Of all the answers' words, sample after sample."""
        # A mask (B S) picks rows of (B S D) to (W D), so that padding costs no logits.
        return self.head(self.run()[self.batch.answered]).float()

    @cached_property
    def plain(self) -> Float[Tensor, "W V"]:
        """The unpruned model's."""
        return self.head(self.run_plain()[self.batch.answered]).float()

    def per_sample(self, values: Float[Tensor, " W"]) -> Float[Tensor, " B"]:
        """Sums of the words' values."""
        there = self.batch.answered  # (B S)
        # masked_scatter writes the values back to their samples and steps, one after the other.
        out = torch.zeros(there.shape, dtype=torch.float64, device=values.device)
        return out.masked_scatter(there, values.double()).sum(1)


@dataclass(frozen=True)
class Objective:
    """A quality, higher is better: the sum of what `of` gives over the sum of weights.

    Attributes:
        name: on the command line.
        of: from a trial to each sample's sum.
        by_word: whether a sample weighs as many as its answer has words (with the end of sequence),
            or one.
        ceiling: the most that quality can be; with it a trial is given up once it cannot pass.
    """

    name: str
    of: Callable[[Trial], Float[Tensor, " B"]]
    by_word: bool
    ceiling: float


def likelihood(trial: Trial) -> Float[Tensor, " B"]:
    """Log-likelihood of the right answers' words, nats."""
    answers = trial.batch.inputs["input_ids"][:, trial.batch.prompt :]  # (B S)
    words = answers[trial.batch.answered]  # (W)
    chances = trial.logits.log_softmax(-1)  # (W V)
    return trial.per_sample(chances.gather(1, words[:, None])[:, 0])


def divergence(trial: Trial) -> Float[Tensor, " B"]:
    """Minus the divergence KL(unpruned || schedule) of every word's distribution, nats."""
    return -trial.per_sample(_kl(trial).clamp(min=0))


def first_divergence(trial: Trial) -> Float[Tensor, " B"]:
    """Minus the divergence at the first word alone, as VTW's search has it (2405.05803)."""
    first = torch.zeros_like(trial.batch.answered)
    first[:, 0] = True
    return -trial.per_sample(_kl(trial).clamp(min=0) * first[trial.batch.answered])


def _kl(trial: Trial) -> Float[Tensor, " W"]:
    """KL(unpruned || schedule) at every word."""
    plain = trial.plain.log_softmax(-1)
    pruned = trial.logits.log_softmax(-1)
    return (plain.exp() * (plain - pruned)).sum(-1)


def exact(trial: Trial) -> Float[Tensor, " B"]:
    """1 where the greedy answer is the right one, word for word."""
    pairs = zip(trial.said(), trial.wanted, strict=True)
    same = [float(answer.strip() == right.strip()) for answer, right in pairs]
    return torch.tensor(same, dtype=torch.float64, device="cpu")


def metric(name: str, judge: Callable[[str, str], float], ceiling: float = 1.0) -> Objective:
    """A task's metric as an objective.

    It is the mean of `judge(greedy answer, right answer)`, which is at most `ceiling`.
    """

    def of(trial: Trial) -> Float[Tensor, " B"]:
        pairs = zip(trial.said(), trial.wanted, strict=True)
        values = [float(judge(answer, right)) for answer, right in pairs]
        return torch.tensor(values, dtype=torch.float64, device="cpu")

    return Objective(name, of, by_word=False, ceiling=ceiling)


def _judged(name: str, answer: str, right: str) -> float:
    return of_one(name, answer, (right,))


_OBJECTIVES = [
    Objective("kl", divergence, by_word=True, ceiling=0.0),
    Objective("likelihood", likelihood, by_word=True, ceiling=0.0),
    Objective("first-kl", first_divergence, by_word=False, ceiling=0.0),
    Objective("exact", exact, by_word=False, ceiling=1.0),
    *(metric(name, partial(_judged, name)) for name in PER_ANSWER if name not in ("exact", "vqa")),
]
OBJECTIVES = {objective.name: objective for objective in _OBJECTIVES}


@torch.no_grad()
def greedy(loaded: Loaded, batch: Batch, method: Method, longest: int) -> list[str]:
    """Greedy answers to a batch's prompts under a method."""
    inputs = batch.prompts
    inputs.pop("position_ids", None)  # `generate` makes its own
    with apply(loaded.model, method):
        out = loaded.model.generate(**inputs, max_new_tokens=longest, do_sample=False)
    said: list[str] = loaded.processor.batch_decode(
        out[:, batch.prompt :], skip_special_tokens=True
    )
    return said
