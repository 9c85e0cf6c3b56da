"""`foveate demo evaluate`: the bundled model's report on held-out pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from ..demo import evaluate
from ..demo.bundled import load
from ..demo.easyvqa import EasyVQA
from ..methods import parse
from .demo import quality_table
from .output import console, errors, print_json


def evaluate_model(
    method: Annotated[list[str] | None, typer.Option(help="Methods to score beside the unpruned model; may be repeated.")] = None,
    model: Annotated[str, typer.Option(help="scenes, or the folder of a model trained by `foveate demo train`.")] = "scenes",
    split: Annotated[str, typer.Option(help="val or test; never seen in training.")] = "test",
    pictures: Annotated[int, typer.Option(min=1, help="Scenes to score on.")] = 200,
    easy_vqa: Annotated[int, typer.Option(min=0, help="Pictures of easy-vqa's test split (0: none; it has 1000).")] = 0,
    device: Annotated[str, typer.Option(help="Such as cpu or cuda:0.")] = "cpu",
    save: Annotated[Path | None, typer.Option(help="Write the figures and all answers as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else.")] = False,
) -> None:
    """Score descriptions, captions and questions on held-out scenes (and easy-vqa), with 95 % intervals."""
    if split not in ("val", "test"):
        raise ValueError(f"split {split!r}; expected val or test (train was seen in training)")
    specs = {"unpruned": []} | {spec: parse(spec) for spec in method or []}
    asked = list(evaluate.questions(split, pictures))
    if easy_vqa:
        data = EasyVQA.find()
        if data is None:
            raise ValueError("easy-vqa is not installed; pip install 'foveate[easy-vqa]', or leave --easy-vqa out")
        asked += evaluate.easy_questions(data, easy_vqa)
    loaded = load(model, device=device)
    reports = []
    with Progress(console=errors, transient=True) as progress:
        task = progress.add_task("answering", total=len(asked) * len(specs))
        for spec, methods in specs.items():
            found = evaluate.answer(
                loaded.model, loaded.processor, asked, methods, progress=lambda n: progress.advance(task, n)
            )
            reports.append(evaluate.judge(spec, asked, found))
    body = {
        "model": model,
        "split": split,
        "pictures": pictures,
        "easy_vqa_pictures": easy_vqa,
        "methods": {r.method: {"figures": r.figures, "intervals": r.intervals} for r in reports},
    }
    if save is not None:
        import json

        save.write_text(json.dumps({**body, "answers": {r.method: r.answers for r in reports}}, indent=1))
    if as_json:
        print_json(body)
    else:
        console.print(quality_table(reports))
