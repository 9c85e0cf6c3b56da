"""``smol`` put together: the language model from where it is, and what we trained from this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .base import load_base
from .model import build_model, build_processor, merge

LEARNED = "learned.safetensors"  # tower, projector and low-rank update
UPDATE = "update."  # before the names of the low-rank update's matrices
_OURS = ("vision_tower.", "multi_modal_projector.")
_ROWS = slice(200, 264)  # of the word table, kept to recognise the language model
_ROUNDING = (
    0.15  # relative difference that four bits may make; another model's rows differ by more than 1
)


def fingerprint(model: Any) -> Tensor:
    """Some rows of the word table, (64 D): what the learned parts were trained on. Training does not touch them."""
    rows: Tensor = model.get_input_embeddings().weight[_ROWS]
    return rows.detach().clone()


def load_smol(folder: Path, attention: str) -> tuple[Any, Any]:
    """Model (float32, on the CPU) and processor.

    Args:
        folder: where `LEARNED` is.
        attention: transformers' `attn_implementation`.

    Raises:
        ValueError: the language model is not to be had, or is another than the learned parts were trained on.
    """
    base = load_base()
    learned = load_file(folder / LEARNED)
    known = learned["fingerprint"].float()
    off = (fingerprint(base.model) - known).norm() / known.norm()
    if off > _ROUNDING:
        raise ValueError(
            f"the language model from {base.source} is not SmolLM2-135M-Instruct: its words differ"
        )
    processor = build_processor(base)
    model = build_model(base, attention)
    take(model, learned)
    merge(
        model,
        {k.removeprefix(UPDATE): v.float() for k, v in learned.items() if k.startswith(UPDATE)},
    )
    return model, processor


def take(model: Any, learned: dict[str, Tensor]) -> None:
    """Gives the LLaVA the tower and the projector that `learned_parts` put by."""
    whole = {f"model.{k}": v.float() for k, v in learned.items() if k.startswith(_OURS)}
    model.load_state_dict(whole | {k: v for k, v in model.state_dict().items() if k not in whole})


def learned_parts(model: Any, update: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `load_smol` needs, in float16.

    Args:
        model: the trained LLaVA.
        update: the low-rank update, as `merge` takes it.
    """
    parts = {k: v for k, v in model.model.state_dict().items() if k.startswith(_OURS)}
    parts |= {f"{UPDATE}{k}": v for k, v in update.items()}
    parts["fingerprint"] = fingerprint(model)
    return {k: v.detach().cpu().to(torch.float16).contiguous() for k, v in parts.items()}
