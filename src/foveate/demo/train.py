"""The recipe of ``scenes``: two stages, seeded, resumable, on a CPU or a GPU.

Every batch is a pure function of its number, so a run that is stopped and resumed sees what an uninterrupted
run sees and ends with the same weights.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from . import conversations, tower
from .easyvqa import EasyVQA
from .grounding import Grounding
from .model import build_model
from .muon import Muon
from .world import MAX_OBJECTS

Loss = tuple[Tensor, dict[str, float]]
Report = Callable[[str, dict[str, float]], None]


@dataclass(frozen=True)
class Recipe:
    """All numbers of a run: `tower_...` of stage 1, the others of stage 2 or of both.

    Steps are optimiser steps; `ramp` is the number of rows over which scenes grow to their full number of
    objects; `decay` is the last part of a stage, over which the learning rate falls to zero. A run may go on from a
    finished model: `start` is the hash of its weights (there is no stage 1 then), and `skip` the number of training
    rows of stage 2 to pass over, those that it has seen.
    """

    seed: int = 0
    tower_steps: int = 1500
    tower_batch: int = 32
    tower_lr: float = 3e-3
    tower_ramp: int = 12000
    steps: int = 1900
    batch: int = 12
    lr: float = 3e-3
    ramp: int = 4800
    easy_vqa: float = 0.1
    start: str | None = None
    skip: int = 0
    warmup: int = 50
    decay: float = 0.5


def weights_hash(folder: Path) -> str:
    """SHA-256 of the weights of the finished model in `folder`."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


class Rows(Dataset[Any]):
    """Rows number `first` to `last` of a stage, as a map-style dataset."""

    def __init__(self, make: Callable[[int], Any], first: int, last: int) -> None:
        self.make, self.first, self.last = make, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: int) -> Any:
        return self.make(self.first + index)


def normalise(pixels: Tensor) -> Tensor:
    """uint8 (B H W 3) to what the image processor gives: float (B 3 H W) in [-1, 1]."""
    return pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def curriculum(index: int, ramp: int) -> int:
    """Most objects in the scene of row `index`: from 3 to all of them over the first `ramp` rows of a stage."""
    return min(MAX_OBJECTS, 3 + int(index / max(1, ramp) * (MAX_OBJECTS - 2)))


def tower_row(index: int, ramp: int) -> Any:
    """Training row `index` of stage 1."""
    return tower.dense_example("train", index, curriculum(index, ramp))


def chat_row(index: int, ramp: int, offset: int, share: float, extra: EasyVQA | None) -> Any:
    """Training row `index` of stage 2: a scene, or with probability `share` an easy-vqa picture."""
    rng = np.random.default_rng((3, index))
    if extra is not None and rng.random() < share:
        row = conversations.pack(*extra.turns("train", int(rng.integers(extra.images("train"))), rng), rng)
    else:
        row = conversations.pack(*conversations.scene_turns("train", offset + index, curriculum(index, ramp)), rng)
    return tuple(getattr(row, key) for key in row.__dataclass_fields__)


def rate(step: int, recipe: Recipe, steps: int) -> float:
    """Learning-rate factor: linear warm-up, flat, then linear decay to zero over the last part."""
    left = (steps - step) / max(1.0, recipe.decay * steps)
    return min(1.0, (step + 1) / recipe.warmup, left)


def optimizers(modules: list[nn.Module], lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the networks, AdamW for embeddings, norms, biases and heads."""
    named = {id(p): (name, p) for module in modules for name, p in module.named_parameters()}
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, p in named.values():
        if not p.requires_grad:
            continue
        inner = p.ndim >= 2 and not any(
            part in name for part in ("embed", "lm_head", "part", "count", "background", "ground")
        )
        (matrices if inner else others).append(p)
    return [Muon(matrices, lr=lr), torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)]


class Run:
    """One stage: model, optimisers, data and checkpoint; `advance` yields progress after each step."""

    def __init__(
        self,
        name: str,
        folder: Path,
        modules: dict[str, nn.Module],
        lr: float,
        steps: int,
        decay: float,
        save_every: int,
    ) -> None:
        self.name, self.folder, self.modules = name, folder, modules
        self.lr, self.steps, self.decay = lr, steps, decay
        self.save_every = save_every
        self.optimizers = optimizers(list(modules.values()), lr)
        self.step = 0

    def save(self) -> None:
        """Writes the checkpoint; the old one stays whole until the new one is."""
        tensors = {f"{m}/{k}": v for m, module in self.modules.items() for k, v in module.state_dict().items()}
        tensors.pop("model/lm_head.weight", None)
        for o, optimizer in enumerate(self.optimizers):
            for p, state in optimizer.state_dict()["state"].items():
                tensors.update({f"optimizer{o}/{p}/{k}": torch.as_tensor(v) for k, v in state.items()})
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
        step, steps = int(facts["step"]), int(facts["steps"])
        if steps != self.steps and step > (1 - self.decay) * min(steps, self.steps):
            raise ValueError(
                f"{path} is at step {step} of {steps}, where the learning rate already falls, so it cannot become a "
                f"run of {self.steps} steps; give {steps} steps again, or another folder"
            )
        tensors = load_file(path)
        for name, module in self.modules.items():
            mine = {k.split("/", 1)[1]: v for k, v in tensors.items() if k.startswith(f"{name}/")}
            module.load_state_dict(mine, strict=False)
        for o, optimizer in enumerate(self.optimizers):
            whole = optimizer.state_dict()
            for key, value in tensors.items():
                if key.startswith(f"optimizer{o}/"):
                    _, p, k = key.split("/")
                    whole["state"].setdefault(int(p), {})[k] = value
            optimizer.load_state_dict(whole)
        self.step = step

    def finish(
        self, make: Callable[[int], Any], batch: int, loss: Callable[..., Loss], recipe: Recipe, report: Report | None
    ) -> None:
        """Takes up the checkpoint and runs to the last step."""
        self.load()
        rows = Rows(make, self.step * batch, self.steps * batch)
        for seen in self.advance(rows, batch, loss, recipe):
            if report is not None:
                report(self.name, seen)

    def advance(
        self, rows: Dataset[Any], batch: int, loss: Callable[..., Loss], recipe: Recipe
    ) -> Iterator[dict[str, float]]:
        """Trains from the current step to the last; yields the loss and the accuracies of every step."""
        loader = DataLoader(rows, batch_size=batch, num_workers=1, prefetch_factor=4)
        parameters = [p for module in self.modules.values() for p in module.parameters() if p.requires_grad]
        for fields in loader:
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = self.lr * rate(self.step, recipe, self.steps)
            value, seen = loss(*fields)
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.step += 1
            if not math.isfinite(value.item()):
                raise FloatingPointError(f"the loss of step {self.step} of stage {self.name} is {value.item()}")
            yield {"step": self.step, "loss": value.item(), **seen}
            if self.step % self.save_every == 0 or self.step == self.steps:
                self.save()


def train(
    folder: Path,
    recipe: Recipe,
    device: str = "cpu",
    report: Report | None = None,
    save_every: int = 50,
    start: Path | None = None,
) -> nn.Module:
    """Runs what is left of both stages in `folder`, and returns the trained model.

    Args:
        folder: checkpoints, `recipe.json` and the log go here.
        recipe: the numbers of the run; a folder belongs to one recipe.
        device: where to train.
        report: called after each step with the stage's name and its figures.
        save_every: steps between checkpoints, all that a kill can lose.
        start: folder of the finished model to go on from, whose hash is the recipe's `start`.

    Raises:
        ValueError: `start` is not the model that the recipe names; the folder holds a run of another recipe; or
            easy-vqa is wanted and not installed.
    """
    extra = EasyVQA.find() if recipe.easy_vqa else None
    if recipe.easy_vqa and extra is None:
        raise ValueError("easy-vqa is not installed; pip install 'foveate[easy-vqa]', or train without it (share 0)")
    if (start and weights_hash(start)) != recipe.start:
        raise ValueError(f"the recipe goes on from weights {recipe.start}, but start={start} is not these")
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "recipe.json"
    if note.exists():
        lengths = {"steps": recipe.steps, "tower_steps": recipe.tower_steps}  # `Run.load` judges these
        if {**json.loads(note.read_text()), **lengths} != asdict(recipe):
            raise ValueError(f"{note} holds another recipe; give another folder, or the same numbers to resume")
    note.write_text(json.dumps(asdict(recipe), indent=1))
    torch.manual_seed(recipe.seed)
    model = build_model().to(device)
    if start is not None:
        model.load_state_dict(load_file(start / "model.safetensors") | {"lm_head.weight": model.lm_head.weight})
        model.tie_weights()
    elif not (folder / "chat.safetensors").exists():
        _tower_stage(model, folder, recipe, device, report, save_every)
    _chat_stage(model, folder, recipe, device, report, save_every, extra)
    return model


def _tower_stage(model: Any, folder: Path, recipe: Recipe, device: str, report: Report | None, save_every: int) -> None:
    teacher = tower.TowerTeacher(model).to(device)
    parts = {"model": model, "teacher": teacher}
    run = Run("tower", folder, parts, recipe.tower_lr, recipe.tower_steps, recipe.decay, save_every)
    make = partial(tower_row, ramp=recipe.tower_ramp)

    def loss(pixels: Tensor, labels: list[Tensor]) -> Loss:
        return teacher(model, normalise(pixels.to(device)), tower.DenseLabels(*(v.to(device) for v in labels)))

    run.finish(make, recipe.tower_batch, loss, recipe, report)


def _chat_stage(
    model: Any,
    folder: Path,
    recipe: Recipe,
    device: str,
    report: Report | None,
    save_every: int,
    extra: EasyVQA | None,
) -> None:
    """The tower has learned to see and rests; projector and decoder learn."""
    model.model.vision_tower.requires_grad_(False)
    head = Grounding(model).to(device)
    run = Run("chat", folder, {"model": model, "grounding": head}, recipe.lr, recipe.steps, recipe.decay, save_every)
    offset = recipe.tower_steps * recipe.tower_batch + recipe.skip
    make = partial(chat_row, ramp=recipe.ramp, offset=offset, share=recipe.easy_vqa, extra=extra)

    def loss(pixels: Tensor, *rest: Tensor) -> Loss:
        return conversations.answer_loss(model, head, normalise(pixels.to(device)), *(v.to(device) for v in rest))

    run.finish(make, recipe.batch, loss, recipe, report)
