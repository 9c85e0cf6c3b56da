"""`python -m lab train`: the whole recipe of a bundled model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from foveate.cli import options
from foveate.cli.output import console, errors
from foveate.models.load import BUNDLED
from lab.export import export
from lab.pupils import FILES
from lab.training import RECIPES, Recipe, train, weights_hash

Eyes = Annotated[
    Path | None,
    typer.Option(
        help="Take the tower of the finished scenes in this folder. [smol: the bundled one]"
    ),
]


def train_model(
    model: Annotated[str, typer.Argument(help=f"One of {', '.join(RECIPES)}.")] = "scenes",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for checkpoints and result; give it again to resume. [runs/MODEL]"
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of weights; data are numbered and need none.")
    ] = Recipe.seed,
    tower_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of stage 1, dense labels.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of stage 2, conversations.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures per step of stage 2.")] = None,
    lr: Annotated[float | None, typer.Option(min=0, help="Learning rate of stage 2.")] = None,
    tower_learns: Annotated[
        bool, typer.Option(help="Whether the tower learns on in stage 2.")
    ] = False,
    easy_vqa: Annotated[
        float, typer.Option(min=0, max=1, help="Share of easy-vqa in stage 2.")
    ] = Recipe.easy_vqa,
    start: Annotated[
        Path | None,
        typer.Option(
            help="Go on from the finished model in this folder; stage 1 only if --tower-steps."
        ),
    ] = None,
    eyes: Eyes = None,
    skip: Annotated[
        int, typer.Option(min=0, help="Training scenes to pass over: those that it has seen.")
    ] = 0,
    device: options.Device = "cpu",
) -> None:
    """Train a bundled model from nothing or from `--start`; interrupt and resume at will, to the same result."""
    if model not in RECIPES:
        raise ValueError(f"there is no recipe for {model!r}; expected one of {', '.join(RECIPES)}")
    usual = RECIPES[model]
    recipe = replace(
        usual,
        seed=seed,
        tower_steps=tower_steps or (usual.tower_steps if start is None else 0),
        steps=steps or usual.steps,
        batch=batch or usual.batch,
        lr=lr or usual.lr,
        tower_learns=tower_learns,
        easy_vqa=easy_vqa,
        skip=skip,
    )
    recipe, eyes = _begun(recipe, start, eyes)
    folder = out or Path("runs") / model
    trained = _run(folder, recipe, device, start, eyes)
    export(trained, folder / "final", recipe, start)
    console.print(
        f"finished: {folder / 'final'}; score it with: foveate eval --model {folder / 'final'}"
    )


def _begun(recipe: Recipe, start: Path | None, eyes: Path | None) -> tuple[Recipe, Path | None]:
    """The recipe with the hashes of what it starts from, and the folder whose tower it takes."""
    if start is not None and eyes is not None:
        raise ValueError(
            "got --start and --eyes; a finished model has its tower, so give one of them"
        )
    eyes = BUNDLED["scenes"] if start is None and eyes is None and recipe.model == "smol" else eyes
    for option, given, model in (("--start", start, recipe.model), ("--eyes", eyes, "scenes")):
        if given is not None and not (given / FILES[model]).is_file():
            raise ValueError(
                f"{option} {given}; expected the folder of a finished {model}, with {FILES[model]}"
            )
    if start is not None:  # it needs no easier scenes first
        recipe = replace(recipe, start=weights_hash(start, recipe.model), ramp=0)
    return (recipe if eyes is None else replace(recipe, eyes=weights_hash(eyes))), eyes


def _run(
    folder: Path, recipe: Recipe, device: str, start: Path | None, eyes: Path | None
) -> object:
    """The training, with a progress bar for each stage."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors) as progress:
        tasks = {
            "tower": progress.add_task(
                "tower", total=recipe.tower_steps, visible=recipe.tower_steps > 0
            ),
            "chat": progress.add_task("chat", total=recipe.steps),
        }

        def report(stage: str, seen: dict[str, float]) -> None:
            line = " ".join(f"{k} {v:.3f}" for k, v in seen.items() if k != "step")
            progress.update(tasks[stage], completed=seen["step"], description=f"{stage} {line}")
            if (
                seen["step"] % 50 == 0
            ):  # what stays to be read, also in a log file, where there is no bar
                progress.console.print(f"{stage} step {seen['step']:.0f}: {line}", highlight=False)

        return train(folder, recipe, device, report, start=start, eyes=eyes)
