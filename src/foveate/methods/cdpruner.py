"""CDPruner: diverse tokens that suit the instruction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.knobs import checked
from ..core.method import Method
from ..core.pictures import ByImage, EachImage, Picture, Rank, Share
from ..core.schedules import spelled
from ..core.tokens import Kind


@dataclass(frozen=True)
class Determinantal(Rank):
    """Greedy MAP inference of the process with kernel diag(r) S diag(r), S the cosines and r the
    relevance.

    Attributes:
        relevant: whether r is the tokens' similarity to the instruction; else 1, a plain process.
    """

    relevant: bool

    def __call__(self, picture: Picture, count: int) -> Float[Tensor, n]:
        """Minus the turn in which a token is chosen; all that are not come last, together."""
        states = picture.states()
        weight = self.relevance(picture, states)
        kernel = weight[:, None] * picture.cosines(states, states).fill_diagonal_(1.0) * weight
        turn = torch.full(
            (len(picture),), float(len(picture)), device=kernel.device, dtype=torch.float32
        )
        gain = kernel.diagonal().clone()
        basis = kernel[:0]
        for number in range(min(count, len(picture))):
            chosen = gain.masked_fill(turn < len(picture), -torch.inf).argmax()
            # One column of the Cholesky factor: what the chosen token shares with the others, less
            # what those chosen before it have taken already. A token's gain is what is left of its
            # own diagonal.
            along = basis[:, chosen, None].T @ basis
            picture.view.spend(2.0 * basis.numel())
            step = (kernel[chosen] - along[0]) / gain[chosen].clamp(min=1e-12).sqrt()
            basis = torch.cat([basis, step[None]])
            gain = gain - step**2
            turn[chosen] = number
        return -turn

    def relevance(self, picture: Picture, states: Float[Tensor, "n D"]) -> Float[Tensor, n]:
        """Mean cosine with the instruction's tokens, scaled to (0, 1] over the image."""
        rows = picture.view.rows[picture.sample]
        asking = picture.view.tokens.are(Kind.INSTRUCTION)[picture.sample][rows.clamp(min=0)] & (
            rows >= 0
        )
        if not self.relevant or not bool(asking.any()):
            return torch.ones(len(picture), device=states.device, dtype=torch.float32)
        words = picture.view.hidden[picture.sample][asking].float()
        near = picture.cosines(states, words).mean(1)
        return (near - near.min() + 1e-6) / (near.max() - near.min()).clamp(min=1e-6)


@checked
def cdpruner(
    layer: int = 0,
    keep: float | int = 0.25,
    relevance: Literal["instruction", "none"] = "instruction",
) -> Method:
    """Before layer `layer`, keep a set of visual tokens that is diverse and relevant to the
    instruction.

    Paper: "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in
    MLLMs", Zhang et al., arXiv 2506.10967 (conditional determinantal point process, fast greedy
    MAP). Checked against the authors' code.

    Where: before the language model; layer 0.

    Deviations: the paper's relevance compares patches with the instruction in CLIP's shared space,
    and its code takes the *negative* of that cosine, as CLIP's patches have it. Stock models hold
    no CLIP text tower; the stand-in is the mean cosine of a visual token with the instruction's
    tokens as both enter the layer, its sign kept, scaled to (0, 1] as in the code. Similarity, too,
    is that of the tokens after the projector.

    Args:
        layer: the first layer that runs with fewer tokens; 0 is before the language model, as in
            the paper.
        keep: visual tokens kept of each image, a fraction (float) or a number (int).
        relevance: "none" leaves the instruction out: diversity alone.

    Raises:
        ValueError: a negative layer, `keep` out of range, or an unknown relevance.
    """
    if relevance not in ("instruction", "none"):
        raise ValueError(f"relevance={relevance!r}; expected instruction or none")
    count = Share(keep)
    name = f"cdpruner:layer={layer},keep={spelled(keep)}" + (
        "" if relevance == "instruction" else ",relevance=none"
    )
    return Method(
        ByImage(Determinantal(relevance == "instruction"), count),
        EachImage(count, layer),
        name=name,
    )
