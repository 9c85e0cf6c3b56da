"""What the model looks at: attention shares of the four token types, over steps and layers (DyRate, Figure 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from ..core.features import shares_by_type
from ..core.method import Method
from ..core.tokens import Kind
from ..core.view import View
from ..engine.apply import apply


@dataclass(frozen=True)
class Paid:
    """Attention that the newest token of each step paid, mean over heads.

    Attributes:
        shares: to the four types, by layer.
        tokens: to each visual token of the prompt, mean over layers too; 0 where it was dropped.
    """

    shares: Float[np.ndarray, "S L 4"]
    tokens: Float[np.ndarray, "S N"]


def attention_shares(
    model: nn.Module, inputs: Mapping[str, Any], max_new_tokens: int, *methods: Method | str
) -> Float[np.ndarray, "S L 4"]:
    """Shares of the four types for every step and layer of one greedy answer, mean over heads.

    Args and Raises: as `attention_paid`.
    """
    return attention_paid(model, inputs, max_new_tokens, *methods).shares


@torch.inference_mode()
def attention_paid(
    model: nn.Module, inputs: Mapping[str, Any], max_new_tokens: int, *methods: Method | str
) -> Paid:
    """Attention at every step of one greedy answer.

    The rows that this recomputes are counted in the trace of the run; take costs from another one.

    Args:
        model: of a supported family, as for `apply`.
        inputs: what the processor made of one prompt.
        max_new_tokens: longest answer; step 0 is the prefill, whose newest token is the last of the prompt.
        methods: applied meanwhile.

    Raises:
        ValueError: `inputs` hold more than one sample, whose answers would end at different steps.
    """
    samples = inputs["input_ids"].shape[0]
    if samples != 1:
        raise ValueError(
            f"inputs hold {samples} samples; give one at a time, for answers differ in length"
        )
    shares: list[list[np.ndarray]] = []
    tokens: list[list[np.ndarray]] = []

    def record(view: View) -> None:
        if view.layer == 0:
            shares.append([])
            tokens.append([])
            return
        shares[-1].append(shares_by_type(view).mean(1)[0].cpu().numpy())
        row = view.attention(view.newest)[0, :, 0].mean(0)  # of the layer before (C)
        tokens[-1].append(row[view.tokens.are(Kind.IMAGE)[0]].cpu().numpy())

    chosen: Any = model
    with apply(model, *methods, watch=record):
        chosen.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return Paid(np.array(shares), np.array(tokens).mean(1))


def mean_over_answers(answers: list[np.ndarray]) -> Float[np.ndarray, "S L 4"]:
    """Mean over answers of different lengths: each step over the answers that reach it."""
    longest = max(len(answer) for answer in answers)
    padded = np.full((len(answers), longest, *answers[0].shape[1:]), np.nan)
    for row, answer in zip(padded, answers, strict=True):
        row[: len(answer)] = answer
    return np.nanmean(padded, 0)
