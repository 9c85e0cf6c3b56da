"""Attention statistics of the unpruned model, as FitPrune's recipe needs them (2409.10197)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...core.scores import CHUNK, Received
from ...core.tokens import Kind
from ...core.view import View
from ..dyrate.rollout import batch_of
from ..examples import Example
from .runner import Runner

POINTS = 101


@torch.no_grad()
def lost_mass(model: Any, processor: Any, examples: Sequence[Example], batch: int = 8) -> Float[np.ndarray, "L 2 P"]:
    """Share of the attention to visual tokens that is lost by dropping the least attended 0, 1, .. 100 % of them.

    Per layer, from visual tokens (self) and from instruction tokens (cross), mean over heads, rows and samples.
    """
    runner = Runner(model, Received())
    sums, samples = np.zeros((len(runner.layers), 2, POINTS)), 0
    for start in range(0, len(examples), batch):
        given, _, _ = batch_of(runner.model, processor, examples[start : start + batch])
        state = runner.start(given)
        has = state.prompt.total > 0
        samples += int(has.sum())
        for layer in range(len(runner.layers)):
            state = runner.advance(state, 1.0)
            view = runner.view(state)
            for kind, asking in enumerate((Kind.IMAGE, Kind.INSTRUCTION)):
                sums[layer, kind] += _curves(_received(view, asking), view.mask)[has].sum(0).cpu().numpy()
    if not samples:
        raise ValueError("none of the examples has an image, so there are no statistics to take")
    return sums / samples


def _received(view: View, kind: Kind) -> Float[Tensor, "B N"]:
    """Attention received from all tokens of a kind, mean over heads."""
    known = view.tokens.are(kind).gather(1, view.rows.clamp(min=0)) & (view.rows >= 0)
    asking = torch.where(known, view.rows, -1)
    total = torch.zeros(view.tokens.kind.shape, device=asking.device)
    for start in range(0, asking.shape[1], CHUNK):
        total += view.attention(asking[:, start : start + CHUNK]).mean(1).sum(1)
    return view.of_visual(total)


def _curves(received: Float[Tensor, "B N"], mask: Tensor) -> Float[Tensor, "B P"]:
    """Cumulative share of each row, least first, read at `POINTS` places of its own number of tokens."""
    rising = received.double().masked_fill(~mask, torch.inf).sort(dim=1).values.nan_to_num(posinf=0.0)
    held = torch.nn.functional.pad(rising.cumsum(1), (1, 0))
    held = held / held[:, -1:].clamp(min=1e-30)
    count = mask.sum(1, keepdim=True).double()
    places = torch.linspace(0, 1, POINTS, dtype=torch.float64, device=held.device) * count
    low = places.floor().long().clamp(max=held.shape[1] - 1)
    high = places.ceil().long().clamp(max=held.shape[1] - 1)
    part = places - low
    return held.gather(1, low) * (1 - part) + held.gather(1, high) * part
