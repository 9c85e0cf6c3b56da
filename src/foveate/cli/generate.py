"""`foveate generate`: answer about images, with and without methods, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image, UnidentifiedImageError
from rich.progress import Progress

from ..demo.bundled import load
from ..methods import parse
from . import rows
from .output import console, errors, print_json

ModelOption = Annotated[str, typer.Option("--model", help="scenes (bundled), a folder, or a hub id.")]
DeviceOption = Annotated[str, typer.Option(help="Such as cpu or cuda:0.")]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else.")]


def generate(
    inputs: Annotated[list[str], typer.Argument(metavar="IMAGE... PROMPT", help="One image or more, then the prompt.")],
    method: Annotated[
        list[str] | None, typer.Option(help="Such as fastv:layer=2,keep=0.5 (keep=64 is a number of tokens). May be repeated.")
    ] = None,
    model: ModelOption = "scenes",
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "auto",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each method; the median is shown.")] = 3,
    trace: Annotated[Path | None, typer.Option(help="Write what each method kept, per step and layer, as JSON.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a prompt about images; the unpruned model is always the first row."""
    *paths, prompt = inputs
    if not paths:
        raise ValueError(f"got {prompt!r} alone; expected at least one image, then the prompt")
    table = [rows.Row("unpruned", None), *(rows.Row(spec, parse(spec)) for spec in dict.fromkeys(method or []))]
    pictures = [open_image(path) for path in paths]
    if trace is not None and not trace.parent.is_dir():
        raise ValueError(f"cannot write {trace}: there is no folder {trace.parent}")
    loaded = load(model, device=device, dtype=dtype)
    encoded = encode(loaded.processor, pictures, prompt).to(loaded.model.device, loaded.model.dtype)
    with Progress(console=errors, transient=True) as progress:
        task = progress.add_task("generating", total=(repeats + 1) * len(table))
        rows.run(
            loaded.model, loaded.processor, [dict(encoded)], table, max_new_tokens, repeats, lambda: progress.advance(task)
        )
    if trace is not None:
        for number, row in enumerate(table[1:]):
            row.trace.save(trace if number == 0 else trace.with_stem(f"{trace.stem}-{number}"))
    if as_json:
        print_json({"model": model, "prompt": prompt, "images": paths, "rows": [rows.as_dict(r, table[0]) for r in table]})
        return
    for row in table:
        console.print(f"[bold]{row.spec}[/bold]: {row.answers[0]}", highlight=False)
    console.print(rows.table(table))


def open_image(path: str) -> Image.Image:
    """The picture at `path`, in RGB.

    Raises:
        ValueError: no such file, or it holds no picture.
    """
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except FileNotFoundError:
        raise ValueError(f"there is no image {path!r}") from None
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"cannot read {path!r} as an image: {error}") from error


def encode(processor: Any, pictures: list[Image.Image], prompt: str) -> Any:
    """The processor's inputs for one user turn with these pictures; the chat template where there is one."""
    if getattr(processor, "chat_template", None):
        content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": prompt}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    else:
        token = getattr(processor, "image_token", "<image>")
        text = f"USER: {f'{token} ' * len(pictures)}{prompt} ASSISTANT:"
    return processor(images=pictures, text=text, return_tensors="pt")
