"""Muon in float32: orthogonalised momentum for matrices (Jordan et al. 2024; scale after Liu et al. 2502.16982).

`torch.optim.Muon` iterates in bfloat16, which a CPU without AVX512-BF16 emulates sixty times slower than
float32; the recipe must run on such machines, so the iteration is done here in the gradient's own type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic iteration of the paper, slope tuned at zero
_ITERATIONS = 5


def orthogonalise(matrix: Float[Tensor, "R C"]) -> Float[Tensor, "R C"]:
    """The nearest semi-orthogonal matrix, roughly: singular values end within about 0.7 and 1.2."""
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for 2-D parameters, with Nesterov momentum and decoupled weight decay.

    The update is scaled by ``0.2 sqrt(max(R, C))``, so that its size is AdamW's and both share a learning rate.

    Args:
        params: 2-D parameters (a parameter of more dimensions is seen as ``(first, rest)``).
        lr: learning rate.
        momentum: decay of the gradient average.
        weight_decay: decoupled weight decay.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 2e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update; see `torch.optim.Optimizer.step`."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["average"] = torch.zeros_like(p)
                average = state["average"].lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalise(p.grad.lerp(average, group["momentum"]).flatten(1))
                scale = 0.2 * max(update.shape) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.view_as(p), alpha=-group["lr"] * scale)
        return loss
