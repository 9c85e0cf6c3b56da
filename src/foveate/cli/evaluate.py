"""`foveate demo evaluate`: the bundled model's report on held-out pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..demo import evaluate
from ..models.load import load
from ..timing import comparison
from ..world.easyvqa import EasyVQA
from . import options
from .demo import quality_tables, score
from .output import console, print_json


def evaluate_model(
    method: options.Methods = None,
    model: Annotated[str, typer.Option(help="scenes, smol, or a folder that `python -m lab train` filled.")] = "scenes",
    split: Annotated[str, typer.Option(help="val or test; never seen in training.")] = "test",
    pictures: Annotated[int, typer.Option(min=1, help="Scenes to score on.")] = 200,
    first: Annotated[int, typer.Option(min=0, help="Number of the first scene.")] = 0,
    easy_vqa: Annotated[int, typer.Option(min=0, help="Pictures of easy-vqa's test split (0: none; it has 1000).")] = 0,
    device: options.Device = "cpu",
    save: Annotated[Path | None, typer.Option(help="Write the figures and all answers as JSON.")] = None,
    as_json: options.Json = False,
) -> None:
    """Score descriptions, captions and questions on held-out scenes (and easy-vqa), with 95 % intervals."""
    if split not in ("val", "test"):
        raise ValueError(f"split {split!r}; expected val or test (train was seen in training)")
    if save is not None and not save.parent.is_dir():
        raise ValueError(f"cannot write {save}: there is no folder {save.parent}")
    table = comparison.rows_of(method or [])
    asked = list(evaluate.questions(split, pictures, first))
    if easy_vqa:
        data = EasyVQA.find()
        if data is None:
            raise ValueError("easy-vqa is not installed; pip install 'foveate[easy-vqa]', or leave --easy-vqa out")
        asked += evaluate.easy_questions(data, easy_vqa)
    reports = score(load(model, device=device), table, asked)
    scored = {r.method: {"figures": r.figures, "intervals": r.intervals} for r in reports}
    body = {
        "model": model,
        "split": split,
        "first": first,
        "pictures": pictures,
        "easy_vqa_pictures": easy_vqa,
        "methods": scored,
    }
    if save is not None:
        save.write_text(json.dumps({**body, "answers": {r.method: r.answers for r in reports}}, indent=1))
    if as_json:
        print_json(body)
    else:
        console.print(quality_tables(reports))
