"""What the model looks at: attention shares of the four token types, over steps and layers (DyRate, Figure 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from ..core.features import shares_by_type
from ..core.method import Method
from ..core.view import View
from ..engine.apply import apply


@torch.inference_mode()
def attention_shares(
    model: nn.Module, inputs: Mapping[str, Any], max_new_tokens: int, *methods: Method
) -> Float[np.ndarray, "S L 4"]:
    """Shares of the four types for every step and layer of one greedy answer, mean over heads.

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
    steps: list[list[np.ndarray]] = []

    def record(view: View) -> None:
        if view.layer == 0:
            steps.append([])
        else:
            steps[-1].append(shares_by_type(view).mean(1)[0].cpu().numpy())

    chosen: Any = model
    with apply(model, *methods, watch=record):
        chosen.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return np.array(steps)


def mean_over_answers(answers: list[np.ndarray]) -> Float[np.ndarray, "S L 4"]:
    """Mean over answers of different lengths: each step over the answers that reach it."""
    longest = max(len(answer) for answer in answers)
    padded = np.full((len(answers), longest, *answers[0].shape[1:]), np.nan)
    for row, answer in zip(padded, answers, strict=True):
        row[: len(answer)] = answer
    return np.nanmean(padded, 0)
