"""What differs between the two models that the recipe can train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from foveate.models.smol import base
from foveate.models.smol import model as parts
from foveate.models.smol.assemble import LEARNED, UPDATE, take
from lab import model as scenes
from lab.conversations import Dialect
from lab.muon import Muon
from lab.smol import lora
from lab.smol.dialect import dialect
from lab.smol.rehearsal import Rehearsal, rehearsal

Optimizers = list[torch.optim.Optimizer]
FILES = {
    "scenes": "model.safetensors",
    "smol": LEARNED,
}  # what was trained, in a finished model's folder


@dataclass(frozen=True)
class Pupil:
    """A model about to be trained.

    Attributes:
        model: a LLaVA, freshly initialised where it is ours to train.
        dialect: how it reads conversations.
        ground: the decoder layer that is asked where the named objects are.
        go_on: takes up the file of `FILES` of a finished model, to learn on from it.
        first: optimisers of stage 1, given the modules that learn and the learning rate.
        second: prepares the model for stage 2, where the tower learns on or rests, and gives the optimisers likewise.
        rehearse: the text that keeps the decoder's own language, kept in the file given; None if it has none.
    """

    model: Any
    dialect: Dialect
    ground: int
    go_on: Callable[[Path], None]
    first: Callable[[list[nn.Module], float], Optimizers]
    second: Callable[[list[nn.Module], float, bool], Optimizers]
    rehearse: Callable[[Path], Rehearsal] | None = None


def _inner(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix inside a network, rather than an embedding or a head."""
    outer = ("embed", "lm_head", "part", "count", "background", "ground", "lora_")
    return parameter.ndim >= 2 and not any(part in name for part in outer)


def split_optimizers(modules: list[nn.Module], lr: float, slower: float = 1.0) -> Optimizers:
    """Muon for the matrices inside the networks; AdamW, at `slower` times the rate, for all others that learn."""
    named = {
        id(p): (name, p)
        for module in modules
        for name, p in module.named_parameters()
        if p.requires_grad
    }
    matrices = [p for name, p in named.values() if _inner(name, p)]
    others = [p for name, p in named.values() if not _inner(name, p)]
    return [
        Muon(matrices, lr=lr),
        torch.optim.AdamW(others, lr=lr * slower, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def scenes_pupil() -> Pupil:
    """``scenes``: everything learns; in stage 2 the tower may rest."""
    model = scenes.build_model()

    def go_on(file: Path) -> None:
        model.load_state_dict(load_file(file) | {"lm_head.weight": model.lm_head.weight})
        model.tie_weights()

    def second(modules: list[nn.Module], lr: float, tower: bool) -> Optimizers:
        model.model.vision_tower.requires_grad_(tower)
        return split_optimizers(modules, lr)

    return Pupil(model, scenes.dialect(), 4, go_on, split_optimizers, second)


def smol_pupil() -> Pupil:
    """``smol``: SmolLM2 stays as it is; tower and projector learn, then projector and a low-rank update of SmolLM2.

    The update learns at half the projector's rate.
    """
    found = base.load_base()
    processor = parts.build_processor(found)
    model = parts.build_model(found)
    model.requires_grad_(False)
    for part in (model.model.vision_tower, model.model.multi_modal_projector):
        part.requires_grad_(True)

    before: dict[str, Tensor] = {}

    def go_on(file: Path) -> None:
        learned = load_file(file)
        take(model, learned)
        before.update(
            {k.removeprefix(UPDATE): v.float() for k, v in learned.items() if k.startswith(UPDATE)}
        )

    def second(modules: list[nn.Module], lr: float, tower: bool) -> Optimizers:
        model.model.vision_tower.requires_grad_(tower)
        lora.attach(model, before)
        return split_optimizers(modules, lr, slower=0.5)

    def rehearse(file: Path) -> Rehearsal:
        found.model.to(model.device)
        return rehearsal(found, parts.OPENING, parts.ASKED, parts.ANSWERED, file)

    return Pupil(
        model, dialect(processor.tokenizer, 288), 12, go_on, split_optimizers, second, rehearse
    )


PUPILS: dict[str, Callable[[], Pupil]] = {"scenes": scenes_pupil, "smol": smol_pupil}
