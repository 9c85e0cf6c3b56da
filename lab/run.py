"""One stage of a training: its batches, its optimisers, its checkpoint.

Every batch is a pure function of its number, so a run that is stopped and resumed sees what an uninterrupted
run sees and ends with the same weights.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

Loss = tuple[Tensor, dict[str, float]]
Report = Callable[[str, dict[str, float]], None]


class Rows(Dataset[Any]):
    """Rows number `first` to `last` of a stage, as a map-style dataset."""

    def __init__(self, make: Callable[[int], Any], first: int, last: int) -> None:
        self.make = make
        self.first = first
        self.last = last

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: int) -> Any:
        return self.make(self.first + index)


def rate(step: int, steps: int, warmup: int, decay: float) -> float:
    """Learning-rate factor: linear warm-up, flat, then linear decay to zero over the last part."""
    left = (steps - step) / max(1.0, decay * steps)
    return min(1.0, (step + 1) / warmup, left)


class Run:
    """One stage: model, optimisers, data and checkpoint; `advance` yields progress after each step."""

    def __init__(
        self,
        name: str,
        folder: Path,
        modules: dict[str, nn.Module],
        optimizers: list[torch.optim.Optimizer],
        steps: int,
        warmup: int,
        decay: float,
        save_every: int,
    ) -> None:
        self.name = name
        self.folder = folder
        self.modules = modules
        self.optimizers = optimizers
        self.steps = steps
        self.warmup = warmup
        self.decay = decay
        self.save_every = save_every
        self.peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        self.step = 0

    def learned(self) -> dict[str, Tensor]:
        """What this stage trains, by name; the rest is what it was at the start."""
        named = {
            f"{m}/{k}": p
            for m, module in self.modules.items()
            for k, p in module.named_parameters()
        }
        return {name: p for name, p in named.items() if p.requires_grad}

    def save(self) -> None:
        """Writes the checkpoint; the old one stays whole until the new one is."""
        tensors = self.learned()
        for o, optimizer in enumerate(self.optimizers):
            for p, state in optimizer.state_dict()["state"].items():
                tensors.update(
                    {f"optimizer{o}/{p}/{k}": torch.as_tensor(v) for k, v in state.items()}
                )
        new = self.folder / f"{self.name}.new.safetensors"
        packed = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}
        save_file(packed, new, {"step": str(self.step), "steps": str(self.steps)})
        os.replace(new, self.folder / f"{self.name}.safetensors")

    def load(self) -> None:
        """Takes up the checkpoint if there is one.

        Raises:
            ValueError: the checkpoint is of a run of another length, and its learning rate has begun to fall.
        """
        path = self.folder / f"{self.name}.safetensors"
        if not path.exists():
            return
        with safe_open(path, "pt") as file:
            facts = file.metadata()
        step = int(facts["step"])
        steps = int(facts["steps"])
        if steps != self.steps and step > (1 - self.decay) * min(steps, self.steps):
            raise ValueError(
                f"{path} is at step {step} of {steps}, where the learning rate already falls, so it cannot become a "
                f"run of {self.steps} steps; give {steps} steps again, or another folder"
            )
        tensors = load_file(path)
        for name, parameter in self.learned().items():
            parameter.data.copy_(tensors[name])
        for o, optimizer in enumerate(self.optimizers):
            whole = optimizer.state_dict()
            for key, value in tensors.items():
                if key.startswith(f"optimizer{o}/"):
                    _, p, k = key.split("/")
                    whole["state"].setdefault(int(p), {})[k] = value
            optimizer.load_state_dict(whole)
        self.step = step

    def finish(
        self,
        make: Callable[[int], Any],
        batch: int,
        loss: Callable[..., Loss],
        report: Report | None,
    ) -> None:
        """Takes up the checkpoint and runs to the last step."""
        self.load()
        rows = Rows(make, self.step * batch, self.steps * batch)
        for seen in self.advance(rows, batch, loss):
            if report is not None:
                report(self.name, seen)

    def advance(
        self, rows: Dataset[Any], batch: int, loss: Callable[..., Loss]
    ) -> Iterator[dict[str, float]]:
        """Trains from the current step to the last; yields the loss and the accuracies of every step."""
        loader = DataLoader(rows, batch_size=batch, num_workers=1, prefetch_factor=4)
        parameters = list(self.learned().values())
        for fields in loader:
            factor = rate(self.step, self.steps, self.warmup, self.decay)
            for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * factor
            value, seen = loss(*fields)
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.step += 1
            if not math.isfinite(value.item()):
                raise FloatingPointError(
                    f"the loss of step {self.step} of stage {self.name} is {value.item()}"
                )
            yield {"step": self.step, "loss": value.item(), **seen}
            if self.step % self.save_every == 0 or self.step == self.steps:
                self.save()
