"""`foveate demo train`: the whole recipe of the bundled model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..demo.export import export
from ..demo.train import Recipe, train, weights_hash
from . import options
from .output import console, errors


def train_model(
    out: Annotated[
        Path, typer.Option(help="Folder for checkpoints and the finished model; give it again to resume.")
    ] = Path("runs/scenes"),
    seed: Annotated[int, typer.Option(help="Of weights; data are numbered and need none.")] = Recipe.seed,
    tower_steps: Annotated[int, typer.Option(min=1, help="Steps of stage 1, dense labels.")] = Recipe.tower_steps,
    steps: Annotated[int, typer.Option(min=1, help="Steps of stage 2, conversations.")] = Recipe.steps,
    batch: Annotated[int, typer.Option(min=1, help="Pictures per step of stage 2.")] = Recipe.batch,
    easy_vqa: Annotated[float, typer.Option(min=0, max=1, help="Share of easy-vqa in stage 2.")] = Recipe.easy_vqa,
    start: Annotated[
        Path | None, typer.Option(help="Go on from the finished model in this folder, without stage 1.")
    ] = None,
    skip: Annotated[int, typer.Option(min=0, help="Training rows to pass over: those that it has seen.")] = 0,
    device: options.Device = "cpu",
) -> None:
    """Train the bundled model from nothing or from `--start`; interrupt and resume at will, to the same result."""
    if start is not None and not (start / "model.safetensors").is_file():
        raise typer.BadParameter(f"{start} holds no model.safetensors; give the folder of a finished model")
    origin = weights_hash(start) if start else None
    ramp = Recipe.ramp if start is None else 0  # a finished model needs no easier scenes first
    recipe = Recipe(
        seed=seed,
        tower_steps=tower_steps,
        steps=steps,
        batch=batch,
        ramp=ramp,
        easy_vqa=easy_vqa,
        start=origin,
        skip=skip,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors) as progress:
        tasks = {
            "tower": progress.add_task("tower", total=tower_steps, visible=start is None),
            "chat": progress.add_task("chat", total=steps),
        }

        def report(stage: str, seen: dict[str, float]) -> None:
            line = " ".join(f"{k} {v:.3f}" for k, v in seen.items() if k != "step")
            progress.update(tasks[stage], completed=seen["step"], description=f"{stage} {line}")

        model = train(out, recipe, device, report, start=start)
    export(model, out / "final", recipe)
    console.print(
        f"the finished model is in {out / 'final'}; score it with: foveate demo evaluate --model {out / 'final'}"
    )
