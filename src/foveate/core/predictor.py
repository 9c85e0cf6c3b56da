"""DyRate's predictor: a linear classifier from attention shares to a prune rate (2501.14204,
Section III).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def rate_grid(number: int, drop_all: bool = False) -> tuple[float, ...]:
    """The paper's rates, eq. 1: (k - 1) / K for k = 1..K; the first keeps everything, none drops
    everything.

    Args:
        number: the paper's K.
        drop_all: append the rate 1, which is our extension.

    Raises:
        ValueError: fewer than 2 rates, among which there is nothing to choose.
    """
    if number < 2:
        raise ValueError(f"num_rates={number}; expected 2 or more, or there is nothing to choose")
    return tuple(k / number for k in range(number + drop_all))


class RatePredictor(nn.Module):
    """Picks one of several prune rates from per-head attention shares: softmax(W v + b), v of shape
    (heads x types).

    Args:
        heads: attention heads of the model's decoder.
        rates: prune rates to choose from, ascending in [0, 1]. The paper's grid (`rate_grid`) ends
            below 1; a rate of 1, dropping all, is our extension.
        response: whether the response's share is a feature. It grows with the step whatever the
            answer is; without it the predictor cannot count steps.

    Raises:
        ValueError: rates that are not ascending in [0, 1].
    """

    def __init__(self, heads: int, rates: Sequence[float], response: bool = True) -> None:
        super().__init__()
        if (
            len(rates) < 2
            or list(rates) != sorted(set(rates))
            or not 0 <= rates[0] <= rates[-1] <= 1
        ):
            raise ValueError(
                f"rates={tuple(rates)}; expected two or more ascending rates in [0, 1]"
            )
        self.heads, self.rates, self.response = heads, tuple(float(r) for r in rates), response
        self.linear = nn.Linear(
            heads * (4 if response else 3), len(rates), device="cpu", dtype=torch.float32
        )
        nn.init.zeros_(self.linear.weight)  # at first, all rates are equally likely everywhere
        nn.init.zeros_(self.linear.bias)

    def forward(self, shares: Float[Tensor, "*B H 4"]) -> Float[Tensor, "*B K"]:
        """Logits of the rates.

        Args:
            shares: as `features.shares_by_type` gives them.

        Raises:
            ValueError: another number of heads.
        """
        if shares.shape[-2] != self.heads:
            raise ValueError(
                f"the predictor is for {self.heads} heads, but the model has {shares.shape[-2]}"
            )
        used = shares if self.response else shares[..., :3]
        out: Tensor = self.linear(used.flatten(-2).to(self.linear.weight))
        return out

    def keep(self, total: Int[Tensor, "*B"]) -> Int[Tensor, "*B K"]:
        """Visual tokens that each rate keeps of `total`: the whole part of total (1 - rate) (eq.

        3, as settled).
        """
        left = torch.tensor(
            [1.0 - rate for rate in self.rates], dtype=torch.float64, device=total.device
        )
        return (
            (total[..., None].double() * left + 1e-9).floor().long()
        )  # 0.7 x 10 is 7, whatever rounding says
