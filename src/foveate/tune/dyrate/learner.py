"""A predictor while it learns: its rates learn from each other, and small differences of attention count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...core.predictor import RatePredictor


class Learner(RatePredictor):
    """The paper's linear classifier in other coordinates: logits are polynomials in the rate, of shares made alike.

    With weights of its own for each of K rates, a rate learns from those answers alone that drew it, one in K; here
    what one rate costs tells about its neighbours. And where prompts differ by a few hundredths of a head's attention,
    a learning rate that suits the bias never gets there; here every share has mean 0 and spread 1. `plain` gives the
    same classifier in the paper's form. Neither is in the paper.

    Args:
        heads, rates, response: as of `RatePredictor`.
        degree: of the polynomials, 1 to K - 1; the constant would change no softmax.
        seen: shares of some prompts, (B H 4), for their mean and spread; a spread below 0.05 counts as that.
    """

    basis: Tensor
    mean: Tensor
    spread: Tensor

    def __init__(
        self, heads: int, rates: Sequence[float], response: bool, degree: int, seen: Float[Tensor, "B H 4"]
    ) -> None:
        super().__init__(heads, rates, response)
        self.linear = nn.Linear(self.linear.in_features, degree)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        at = torch.tensor(self.rates, dtype=torch.float64)
        at = 2 * (at - at.min()) / (at.max() - at.min()) - 1
        powers = torch.stack([at**n for n in range(1, degree + 1)], 1)
        self.register_buffer("basis", (powers - powers.mean(0)).float(), persistent=False)
        self.register_buffer("mean", seen.mean(0), persistent=False)
        self.register_buffer("spread", seen.std(0, correction=0).clamp(min=0.05), persistent=False)

    def forward(self, shares: Float[Tensor, "*B H 4"]) -> Float[Tensor, "*B K"]:
        """Logits of the rates."""
        return super().forward((shares - self.mean) / self.spread) @ self.basis.T

    @torch.no_grad()
    def plain(self) -> RatePredictor:
        """The same classifier with a weight for each rate and share."""
        made = RatePredictor(self.heads, self.rates, self.response).to(self.basis.device)
        mean, spread = (t[..., : 4 if self.response else 3].flatten() for t in (self.mean, self.spread))
        made.linear.weight.copy_(self.basis @ (self.linear.weight / spread))
        made.linear.bias.copy_(self.basis @ self.linear.bias - made.linear.weight @ mean)
        return made
