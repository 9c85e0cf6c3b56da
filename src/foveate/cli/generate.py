"""`foveate generate`: answer about images, with and without methods, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import Progress

from ..models.images import open_image
from ..models.load import load
from ..timing import comparison
from . import options, tables
from .output import console, errors, print_json


def generate(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE... PROMPT", help="One image or more, then the prompt."),
    ],
    method: options.Methods = None,
    model: Annotated[str, typer.Option(help="scenes (bundled), a folder, or a hub id.")] = "scenes",
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    repeats: options.Repeats = 3,
    trace: Annotated[
        Path | None, typer.Option(help="Write what each method kept, layer by layer, as JSON.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Answer a prompt about images; the unpruned model is always the first row."""
    paths, prompt = options.images_and_prompt(inputs)
    table = comparison.rows_of(method or [])
    pictures = [open_image(path) for path in paths]
    if trace is not None and not trace.parent.is_dir():
        raise ValueError(f"cannot write {trace}: there is no folder {trace.parent}")
    loaded = load(model, device=device, dtype=dtype)
    encoded = loaded.inputs(pictures, prompt)
    with Progress(console=errors, transient=True) as progress:
        task = progress.add_task("generating", total=(repeats + 1) * len(table))
        comparison.run(
            loaded, [encoded], table, max_new_tokens, repeats, lambda: progress.advance(task)
        )
    if trace is not None:
        for number, row in enumerate(table[1:] or table):
            row.traces[0].save(
                trace if number == 0 else trace.with_stem(f"{trace.stem}-{number + 1}")
            )
    if as_json:
        done = [comparison.as_dict(row, table[0]) for row in table]
        print_json({"model": model, "prompt": prompt, "images": paths, "rows": done})
        return
    for row in table:
        console.print(f"[bold]{row.spec}[/bold]: {escape(row.answers[0])}", highlight=False)
    console.print(tables.compared(table))
