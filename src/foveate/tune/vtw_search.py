"""VTW's search of its layer K, by the divergence of the next token's distribution (2405.05803)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..engine.anatomy import anatomy_of
from ..engine.apply import apply
from ..methods.vtw import vtw


@dataclass(frozen=True)
class VTWSearch:
    """What was found.

    `divergence[k]` is the mean KL of dropping before layer k; `layer` is None if none passed.
    """

    layer: int | None
    divergence: dict[int, float]
    threshold: float
    samples: int


@torch.inference_mode()
def find_vtw_layer(
    model: Any, batches: Iterable[dict[str, Tensor]], *, threshold: float = 0.003, first: int = 1
) -> VTWSearch:
    """The least layer before which all visual tokens may leave, with KL(plain || VTW) <=
    `threshold` on average.

    The paper scans on about 20 samples, for the last prompt token's logits, and takes the first
    layer under the threshold. Deviations: the scan stops there, so shallower layers alone are run;
    the authors' code runs them all. It also takes the divergence the other way, KL(VTW || plain).

    Args:
        model: a supported model.
        batches: keyword arguments of the model, one sample or more each.
        threshold: the paper's eta, in nats.
        first: the shallowest layer to try.

    Raises:
        ValueError: no batches, a batch without an image, or `first` outside the decoder.
    """
    known = list(batches)
    depth = anatomy_of(model).depth
    if not known:
        raise ValueError("got no batches to measure on; give about 20 samples")
    if not 0 <= first < depth:
        raise ValueError(f"first={first}; expected a layer of the decoder, 0 to {depth - 1}")
    if any(batch.get("pixel_values") is None for batch in known):
        raise ValueError(
            "a batch has no pixel_values; without visual tokens every layer would pass"
        )
    plain = [_last_distribution(model, batch) for batch in known]
    samples = sum(len(p) for p in plain)
    divergence: dict[int, float] = {}
    for layer in range(first, depth):
        total = 0.0
        with apply(model, vtw(layer=layer)):
            for batch, want in zip(known, plain, strict=True):
                got = _last_distribution(model, batch)
                total += (want.exp() * (want - got)).sum().item()
        divergence[layer] = total / samples
        if divergence[layer] <= threshold:
            return VTWSearch(layer, divergence, threshold, samples)
    return VTWSearch(None, divergence, threshold, samples)


def _last_distribution(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Log-probabilities (B V) of the token after each prompt, in float32."""
    logits = model(**batch, use_cache=False).logits
    mask = batch.get("attention_mask")
    if mask is None:
        last = torch.full(
            (len(logits),), logits.shape[1] - 1, device=logits.device, dtype=torch.long
        )
    else:
        last = (torch.arange(mask.shape[1], device=mask.device) * mask).argmax(1)
    picked: Tensor = logits[torch.arange(len(logits), device=logits.device), last]
    return picked.float().log_softmax(-1)
