"""Low-rank updates while training; peft does the work, and is needed for nothing else."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from torch import Tensor, nn

from foveate.models.smol.model import LINEAR, RANK, SCALE, linears


def attach(model: Any, before: dict[str, Tensor] | None = None) -> list[nn.Parameter]:
    """Puts a low-rank update on the decoder's linear layers, untrained or as it was `before`; returns its parameters.

    Raises:
        ValueError: peft is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise ValueError("training smol needs peft; pip install 'foveate[train]'")
    peft = importlib.import_module("peft")
    config = peft.LoraConfig(
        r=RANK, lora_alpha=SCALE * RANK, lora_dropout=0.0, target_modules=list(LINEAR)
    )
    peft.inject_adapter_in_model(config, model.model.language_model)
    if before:
        for name, matrix in update(model).items():
            matrix.copy_(before[name])
    return parameters(model)


def parameters(model: Any) -> list[nn.Parameter]:
    """The update's parameters."""
    named = model.model.language_model.named_parameters()
    return [parameter for name, parameter in named if "lora_" in name]


def update(model: Any) -> dict[str, Tensor]:
    """The update as `merge` takes it."""
    found = {}
    for name, layer in linears(model).items():
        adapted: Any = layer
        found[f"{name}.A"] = adapted.lora_A["default"].weight.detach()
        found[f"{name}.B"] = adapted.lora_B["default"].weight.detach()
    return found
