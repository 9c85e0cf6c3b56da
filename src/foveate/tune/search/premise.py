"""The premise of G-Search, measured.

Is the ranking of visual tokens alike in all layers, and do essential counts fall?

Everything is read off the unpruned model's prefill. The finding of arXiv 2412.00556 is a similar
ranking in every layer but the first (Kendall's tau of 0.7 or more, as second-hand notes have it);
its assumption, essential counts that never grow with depth.

Shapes: L layers, N visual tokens of one sample, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...core.view import View
from ...eval.intervals import weighted
from ...methods import score_of
from ...models.loaded import Loaded
from ..examples import Example
from ..train.dyrate.rollout import batch_of
from .runner import Runner

SHARES = (0.5, 0.25, 0.125)  # of the tokens: the tops that are compared
MASS = 0.9  # of a layer's score, which its essential tokens hold
ALIKE = 0.7  # Kendall's tau from which rankings count as alike


@dataclass(frozen=True)
class Premise:
    """How the visual ranking behaves over the layers whose attention gives it, 0 to L - 1.

    Attributes:
        tau: Kendall's tau-b between layers, mean over samples.
        overlap: for every share in `SHARES`, what part of the top so many tokens two layers have in
            common.
        essential: per sample and layer, the least share of tokens that hold `MASS` of the score;
            nan for rankings that are no shares of attention.
    """

    tau: Float[np.ndarray, "L L"]
    overlap: dict[float, Float[np.ndarray, "L L"]]
    essential: Float[np.ndarray, "S L"]

    @property
    def neighbours(self) -> Float[np.ndarray, " K"]:
        """Tau of each layer with the next."""
        return np.diagonal(self.tau, 1)

    def growth(self, seed: int = 0) -> list[tuple[int, float, float, float]]:
        """How the mean essential share grows, layer by layer.

        Returns:
            (layer, growth over the layer before, low and high end of its 95 % bootstrap interval).
        """
        steps = np.diff(self.essential, axis=1)  # (S L-1)
        ones = np.ones(len(self.essential))
        means = [weighted(of_layer, ones, seed) for of_layer in steps.T]
        return [(layer, mean.value, mean.low, mean.high) for layer, mean in enumerate(means, 1)]

    def warnings(self) -> list[str]:
        """Where the premise fails, in plain words.

        Layer 0 is left out, as the paper leaves out the first.
        """
        said = []
        pairs = np.triu_indices(len(self.tau) - 1, 1)  # each pair of layers once
        inner = self.tau[1:, 1:][pairs]
        if len(inner) and inner.mean() < ALIKE:
            said.append(
                "rankings differ from layer to layer: Kendall's tau between layers (the first left "
                f"out) is {inner.mean():.2f} on average, where the paper finds {ALIKE} or more. "
                "A token that a layer drops may be one that a deeper layer wants, so the search "
                "may keep more than it would have to."
            )
        named = [
            f"{layer} (+{mean:.0%} of the tokens)"
            for layer, mean, low, _ in self.growth()
            if layer > 1 and low > 0.01
        ]
        if named:
            said.append(
                f"essential counts grow with depth at layer {', '.join(named)}, counted as the "
                f"tokens that hold {MASS:.0%} of the attention. The search lets no layer keep more "
                "than the one before, so what it finds has passed, but need not be the least."
            )
        return said


@torch.no_grad()
def premise(
    loaded: Loaded, examples: Sequence[Example], ranking: str = "last", batch: int = 8
) -> Premise:
    """Measures on the prompts of some examples.

    Args:
        loaded: a model of a supported family with its processor.
        examples: prompts with images; their answers are not looked at.
        ranking: as `methods.score_of` takes it.
        batch: examples at a time.

    Raises:
        ValueError: no example has an image, or the ranking is unknown.
    """
    score = score_of(ranking)
    found: list[Tensor] = []
    for start in range(0, len(examples), batch):
        found += _scores(Runner(loaded.model, score), loaded, examples[start : start + batch])
    if not found:
        raise ValueError(
            "none of the examples has an image, so there is no visual ranking to measure"
        )
    tau = np.mean([kendall(scores) for scores in found], 0)
    overlap = {}
    for share in SHARES:
        overlap[share] = np.mean([overlaps(scores, share) for scores in found], 0)
    essential = np.array([essential_share(scores) for scores in found])
    return Premise(tau, overlap, essential)


def _scores(runner: Runner, loaded: Loaded, examples: Sequence[Example]) -> list[Tensor]:
    """Scores (L N) of each sample's visual tokens, by every layer's attention.

    Samples without an image are left out.
    """
    batch, _, _ = batch_of(loaded, examples)
    layers = []
    masks = []

    def rank(view: View) -> None:
        if view.layer:  # a view shows the layer that has just run
            runner.score.take_notice(view)
            layers.append(runner.score(view, view.alive).float().cpu())  # (B N)
            masks.append(view.mask.cpu())  # (B N): the same at each layer, since nothing is dropped

    runner.to_end(runner.start(batch), (1.0,) * runner.depth, rank)
    scores = torch.stack(layers, 1)  # (B L N)
    return [
        of_sample[:, real]  # without the fills of samples with fewer tokens
        for of_sample, real in zip(scores, masks[0], strict=True)
        if bool(real.any())
    ]


def kendall(scores: Float[Tensor, "L N"]) -> Float[np.ndarray, "L L"]:
    """Kendall's tau-b between the rows: agreements of all pairs' signs, ties allowed for."""
    layers, count = scores.shape
    agree = torch.zeros(layers, layers, dtype=torch.float64, device="cpu")
    for first in range(count - 1):  # the pairs of one token with all later ones at a time
        signs = (scores[:, first, None] - scores[:, first + 1 :]).sign().double()
        agree += signs @ signs.T  # agreements minus disagreements of each two layers
    norm = agree.diagonal().clamp(min=1).sqrt()
    out: np.ndarray = (agree / norm[:, None] / norm).numpy()
    return out


def overlaps(scores: Float[Tensor, "L N"], share: float) -> Float[np.ndarray, "L L"]:
    """What part of the top `share` of the tokens two layers have in common.

    By chance it is `share` itself.
    """
    count = max(1, round(scores.shape[1] * share))
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    top = torch.zeros(scores.shape, dtype=torch.float64, device="cpu").scatter_(
        1, best, 1.0
    )  # 1 in the top
    out: np.ndarray = (top @ top.T / count).numpy()
    return out


def essential_share(scores: Float[Tensor, "L N"]) -> Float[np.ndarray, " L"]:
    """The least share of tokens that hold `MASS` of each row's sum.

    It is nan where scores are no shares of anything.
    """
    if bool((scores < 0).any()) or not bool((scores.sum(1) > 0).all()):
        return np.full(len(scores), np.nan)
    held = scores.double().sort(dim=1, descending=True).values.cumsum(1)
    enough = held >= MASS * held[:, -1:]
    least = enough.long().argmax(1) + 1  # argmax finds the first that is enough
    out: np.ndarray = (least / scores.shape[1]).double().numpy()
    return out
