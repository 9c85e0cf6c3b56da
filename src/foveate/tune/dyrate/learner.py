"""A predictor while it learns: its rates learn from each other, and small differences of attention count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...core.predictor import RatePredictor


class Learner(RatePredictor):
    """The paper's linear classifier in fewer coordinates: a bell over the rates, whose middle is linear in the shares.

    With weights of its own for each of K rates, a rate learns from those answers alone that drew it, one in K; here
    what one rate costs tells about all. And where prompts differ by a few hundredths of a head's attention, a learning
    rate that suits the bias never gets there; here every share has mean 0 and spread 1. With x the rate from -1 to 1,
    logit = a(shares) x - exp(s) x^2: one highest rate, neighbours next to it. `plain` gives the same classifier in the
    paper's form. Not in the paper.

    Args:
        heads, rates, response: as of `RatePredictor`.
        seen: shares of some prompts, (B H 4), for their mean and spread; a spread below 0.05 counts as that.
    """

    at: Tensor
    mean: Tensor
    spread: Tensor

    def __init__(self, heads: int, rates: Sequence[float], response: bool, seen: Float[Tensor, "B H 4"]) -> None:
        super().__init__(heads, rates, response)
        self.linear = nn.Linear(self.linear.in_features, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.sharpness = nn.Parameter(torch.zeros(()))
        at = torch.tensor(self.rates, dtype=torch.float64)
        self.register_buffer("at", (2 * (at - at.min()) / (at.max() - at.min()) - 1).float(), persistent=False)
        self.register_buffer("mean", seen.mean(0), persistent=False)
        self.register_buffer("spread", seen.std(0, correction=0).clamp(min=0.05), persistent=False)

    def forward(self, shares: Float[Tensor, "*B H 4"]) -> Float[Tensor, "*B K"]:
        """Logits of the rates."""
        return super().forward((shares - self.mean) / self.spread) * self.at - self.sharpness.exp() * self.at.square()

    @torch.no_grad()
    def plain(self) -> RatePredictor:
        """The same classifier with a weight for each rate and share."""
        made = RatePredictor(self.heads, self.rates, self.response).to(self.at.device)
        mean, spread = (t[..., : 4 if self.response else 3].flatten() for t in (self.mean, self.spread))
        made.linear.weight.copy_(self.at[:, None] * (self.linear.weight / spread))
        bell = self.at * self.linear.bias - self.sharpness.exp() * self.at.square()
        made.linear.bias.copy_(bell - made.linear.weight @ mean)
        return made
