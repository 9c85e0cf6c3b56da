"""The recipe of ``scenes`` and ``smol``: two stages, seeded, resumable, on a CPU or a GPU."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from foveate.world.easyvqa import EasyVQA
from foveate.world.scenes import MAX_OBJECTS
from lab import conversations, tower
from lab.grounding import Grounding
from lab.pupils import FILES, PUPILS, Pupil
from lab.run import Loss, Report, Run
from lab.smol.rehearsal import Rehearsal


@dataclass(frozen=True)
class Recipe:
    """All numbers of a run of `model`: `tower_...` of stage 1, the others of stage 2 or of both.

    Steps are optimiser steps; `ramp` is the number of rows over which scenes grow to their full number of
    objects; `tower_learns` says whether the tower learns on in stage 2 or rests; `decay` is the last part of a stage,
    over which the learning rate falls to zero. `even` lets every object count alike in stage 1, rather than every
    patch; `ahead` has stage 2 ask also where the object is that a description names next; `rehearse` is the weight of
    staying at the decoder's own language on text without pictures, as many texts a step as pictures. A run may go on
    from a finished model: `start` is the hash of its weights, and `skip` the number of training scenes to pass over,
    those that it has seen. Or only its tower is that of a finished model, whose hash is `eyes`.
    """

    model: str = "scenes"
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
    tower_learns: bool = False
    even: bool = False
    ahead: bool = False
    rehearse: float = 0.0
    start: str | None = None
    skip: int = 0
    eyes: str | None = None
    warmup: int = 50
    decay: float = 0.5


RECIPES = {
    "scenes": Recipe(),
    "smol": Recipe(
        "smol",
        tower_steps=1400,
        tower_ramp=0,
        steps=800,
        batch=4,
        lr=2e-3,
        ramp=200,
        even=True,
        ahead=True,
        rehearse=0.3,
        warmup=20,
    ),
}


def normalise(pixels: Tensor) -> Tensor:
    """uint8 (B H W 3) to what the image processor gives: float (B 3 H W) in [-1, 1]."""
    return pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def weights_hash(folder: Path, model: str = "scenes") -> str:
    """SHA-256 of the weights of the finished `model` in `folder`."""
    return hashlib.sha256((folder / FILES[model]).read_bytes()).hexdigest()


def curriculum(index: int, ramp: int) -> int:
    """Most objects in the scene of row `index`: from 3 to all of them over the first `ramp` rows of a stage."""
    return min(MAX_OBJECTS, 3 + int(index / max(1, ramp) * (MAX_OBJECTS - 2)))


def tower_row(index: int, ramp: int, offset: int, grid: int, even: bool) -> Any:
    """Training row `index` of stage 1."""
    return tower.dense_example("train", offset + index, curriculum(index, ramp), grid, even)


def chat_row(
    index: int, recipe: Recipe, extra: EasyVQA | None, dialect: conversations.Dialect
) -> Any:
    """Training row `index` of stage 2: a scene that stage 1 has not seen, or now and then an easy-vqa picture."""
    rng = np.random.default_rng((3, index))
    if extra is not None and rng.random() < recipe.easy_vqa:
        pixels, turns = extra.turns("train", int(rng.integers(extra.images("train"))), rng)
    else:
        seen = recipe.skip + recipe.tower_steps * recipe.tower_batch
        pixels, turns = conversations.scene_turns(
            "train", seen + index, curriculum(index, recipe.ramp), recipe.ahead
        )
    row = conversations.pack(pixels, turns, rng, dialect)
    return tuple(getattr(row, key) for key in row.__dataclass_fields__)


def train(
    folder: Path,
    recipe: Recipe,
    device: str = "cpu",
    report: Report | None = None,
    save_every: int = 50,
    start: Path | None = None,
    eyes: Path | None = None,
) -> nn.Module:
    """Runs what is left of both stages in `folder`, and returns the trained model.

    Args:
        folder: checkpoints, `recipe.json` and the log go here.
        recipe: the numbers of the run; a folder belongs to one recipe.
        device: where to train.
        report: called after each step with the stage's name and its figures.
        save_every: steps between checkpoints, all that a kill can lose.
        start: folder of the finished model to go on from, whose hash is the recipe's `start`.
        eyes: folder of the finished model whose tower to take, whose hash is the recipe's `eyes`.

    Raises:
        ValueError: `start` or `eyes` is not the model that the recipe names; the folder holds a run of another recipe;
            or easy-vqa is wanted and not installed.
    """
    extra = _prepared(folder, recipe, start, eyes)
    torch.manual_seed(recipe.seed)
    pupil = PUPILS[recipe.model]()
    pupil.model.to(device)
    if eyes is not None:
        tower.take(pupil.model.model.vision_tower, load_file(eyes / "model.safetensors"))
    if start is not None:
        pupil.go_on(start / FILES[recipe.model])
    if recipe.tower_steps:
        _tower_stage(pupil, folder, recipe, device, report, save_every)
    _chat_stage(pupil, folder, recipe, device, report, save_every, extra)
    return pupil.model


def _prepared(
    folder: Path, recipe: Recipe, start: Path | None, eyes: Path | None
) -> EasyVQA | None:
    """Checks that the run can be done here, writes its recipe, and finds easy-vqa. Raises as `train` says."""
    extra = EasyVQA.find() if recipe.easy_vqa else None
    if recipe.easy_vqa and extra is None:
        raise ValueError(
            "easy-vqa is not installed; pip install 'foveate[easy-vqa]', or train without it (share 0)"
        )
    of = {"start": (start, recipe.start, recipe.model), "eyes": (eyes, recipe.eyes, "scenes")}
    for name, (given, wanted, model) in of.items():
        if (given and weights_hash(given, model)) != wanted:
            raise ValueError(
                f"the recipe names the weights {wanted} as its {name}, but {name}={given} is not these"
            )
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "recipe.json"
    if note.exists():
        lengths = {
            "steps": recipe.steps,
            "tower_steps": recipe.tower_steps,
        }  # `Run.load` judges these
        if {**json.loads(note.read_text()), **lengths} != asdict(recipe):
            raise ValueError(
                f"{note} holds another recipe; give another folder, or the same numbers to resume"
            )
    note.write_text(json.dumps(asdict(recipe), indent=1))
    return extra


def _tower_stage(
    pupil: Pupil, folder: Path, recipe: Recipe, device: str, report: Report | None, save_every: int
) -> None:
    model = pupil.model
    dialect = pupil.dialect
    teacher = tower.TowerTeacher(model, lambda words: dialect.encode(" " + words)).to(device)
    parts: dict[str, nn.Module] = {"model": model, "teacher": teacher}
    learners = pupil.first(list(parts.values()), recipe.tower_lr)
    run = Run(
        "tower",
        folder,
        parts,
        learners,
        recipe.tower_steps,
        recipe.warmup,
        recipe.decay,
        save_every,
    )
    make = partial(
        tower_row, ramp=recipe.tower_ramp, offset=recipe.skip, grid=dialect.grid, even=recipe.even
    )

    def loss(pixels: Tensor, labels: list[Tensor]) -> Loss:
        return teacher(
            model, normalise(pixels.to(device)), tower.DenseLabels(*(v.to(device) for v in labels))
        )

    run.finish(make, recipe.tower_batch, loss, report)


def _chat_stage(
    pupil: Pupil,
    folder: Path,
    recipe: Recipe,
    device: str,
    report: Report | None,
    save_every: int,
    extra: EasyVQA | None,
) -> None:
    """The tower has learned to see; projector and decoder learn."""
    model = pupil.model
    dialect = pupil.dialect
    text = _rehearsal(pupil, folder, recipe)
    head = Grounding(model, pupil.ground, dialect.grid).to(device)
    parts: dict[str, nn.Module] = {"model": model, "grounding": head}
    learners = pupil.second(list(parts.values()), recipe.lr, recipe.tower_learns)
    model.to(device)
    run = Run(
        "chat", folder, parts, learners, recipe.steps, recipe.warmup, recipe.decay, save_every
    )
    make = partial(chat_row, recipe=recipe, extra=extra, dialect=dialect)
    end = dialect.answered[-1]

    def loss(pixels: Tensor, *rest: Tensor) -> Loss:
        fields = (v.to(device) for v in rest)
        value, seen = conversations.answer_loss(
            model, head, normalise(pixels.to(device)), *fields, end=end
        )
        if text is None:
            return value, seen
        strayed = text.loss(model, run.step, recipe.batch)
        return value + recipe.rehearse * strayed, seen | {"strayed": strayed.item()}

    run.finish(make, recipe.batch, loss, report)


def _rehearsal(pupil: Pupil, folder: Path, recipe: Recipe) -> Rehearsal | None:
    """The text of stage 2 that has no pictures, if any."""
    if not recipe.rehearse:
        return None
    if pupil.rehearse is None:
        raise ValueError(
            f"rehearse={recipe.rehearse}, but {recipe.model} has no language of its own to keep; give 0"
        )
    return pupil.rehearse(folder / "rehearsal.safetensors")
