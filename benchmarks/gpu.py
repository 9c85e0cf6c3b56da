"""Speed on a GPU: shapes of random weights at batch 1 to 32, methods beside plain transformers, in a few minutes.

The most important rows (a shape at a batch) come first. Each is written when it is done, and the same command goes on
where it stopped. When the time is up, the row under way is given up. A batch that does not fit is skipped with a line
that says so. DyRate's predictor is random, and the schedule's values are an example: what they cost is measured here,
and not what they do to answers.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from foveate.artefacts.schedules import ScheduleFile
from foveate.core.method import Method
from foveate.core.predictor import RatePredictor, rate_grid
from foveate.cost.architecture import Architecture, architecture
from foveate.cost.configurations import config_of
from foveate.cost.pictures import Size
from foveate.cost.plan import Request, request
from foveate.cost.roofline import held
from foveate.methods import dyrate, parse, schedule
from foveate.timing.race import PLAIN, Found, build, inputs, race
from foveate.versions import versions
from pages import gpu

SHAPES = ("llava-1.5-7b", "llava-1.5-13b", "llava-next-7b", "qwen2.5-vl-7b")
BATCHES = (1, 8, 32)
STATIC = (
    PLAIN,
    "fastv:layer=2,keep=0.25",
)  # also with a compiled decode step, which takes long to compile
SAVE = Path(__file__).parent.parent / "docs" / "results" / "gpu.json"
LAYER = 2
EXAMPLE = (
    (0.1, 1.0),
    (0.3, 0.6),
    (0.6, 0.3),
    (1.0, 0.1),
)  # up to this share of the depth, this share of the tokens


@dataclass(frozen=True)
class Setting:
    """What is the same for all rows."""

    text: int = 64
    new_tokens: int = 64
    repeats: int = 3
    size: Size = (672, 672)
    device: str = "cuda"
    dtype: str = "bfloat16"
    attention: str = "sdpa"


REHEARSED = Setting(text=8, new_tokens=3, repeats=1, size=(336, 336), device="cpu", dtype="float32")


class TimeOverError(Exception):
    """The minutes are over; the row under way is given up."""


def predictor(heads: int, seed: int = 0) -> RatePredictor:
    """A DyRate predictor of random weights whose rates lie about one half."""
    made = RatePredictor(heads, rate_grid(20))
    torch.manual_seed(seed)
    nn.init.normal_(made.linear.weight)
    made.linear.bias.data = -20 * (torch.tensor(made.rates) - 0.5).abs()
    return made.eval()


def example(family: str, layers: int) -> ScheduleFile:
    """A schedule as a search might find it."""
    keep = tuple(
        next(kept for end, kept in EXAMPLE if layer < end * layers) for layer in range(layers)
    )
    return ScheduleFile(keep, "last", "sample", {"family": family, "layers": layers})


def contestants(config: Any) -> dict[str, list[Method]]:
    """Methods by name."""
    text = config.get_text_config()
    depth = text.num_hidden_layers
    specs = [f"fastv:layer={LAYER},keep=0.25", "divprune:keep=0.125"]
    if config.model_type == "llava":  # whose tower VisionZip's published setting is for
        specs.append("visionzip:keep=0.125")
    return {
        **{spec: parse(spec) for spec in specs},
        "dyrate, random predictor": [dyrate(predictor(text.num_attention_heads), layer=LAYER)],
        "schedule, example": [schedule(example(config.model_type, depth))],
    }


def identity(setting: Setting) -> dict[str, Any]:
    """What a file of rows is of."""
    cuda = setting.device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name(setting.device) if cuda else "CPU",
        "memory": torch.cuda.get_device_properties(setting.device).total_memory if cuda else None,
        "setting": {**asdict(setting), "size": list(setting.size)},
        "versions": versions(),
    }


def opened(path: Path, told: dict[str, Any]) -> dict[str, Any]:
    """The rows that are there, of the same run; else none.

    Raises:
        ValueError: the file holds another run's rows.
    """
    if not path.is_file():
        return {**told, "rows": []}
    body = json.loads(path.read_text())
    other = [key for key, value in told.items() if body.get(key) != value]
    if other:
        raise ValueError(
            f"{path} holds rows of another {' and '.join(other)}; move it away, or give another --save"
        )
    return dict(body)


def too_large(sizes: Architecture, asked: Request, memory: float | None) -> str | None:
    """Why a batch cannot fit, if weights and KV cache alone tell."""
    need = held(sizes, asked, [asked.visual] * len(sizes.shapes.layers))
    if memory is None or need <= memory:
        return None
    return f"weights and KV cache need {need / 1e9:.0f} GB of {memory / 1e9:.0f} GB"


def timed(
    model: Any,
    sizes: Architecture,
    asked: Request,
    setting: Setting,
    static: Sequence[str],
    tick: Callable[[], None],
) -> dict[str, Found] | str:
    """A row's contestants, or that memory ran out."""
    try:
        given = inputs(model.config, asked, model, setting.size)
        chosen = contestants(model.config)
        return race(model, sizes, asked, given, chosen, setting.repeats, tick, static)
    except torch.OutOfMemoryError:
        return "the device's memory ran out"


def run(
    shapes: Sequence[str],
    batches: Sequence[int],
    setting: Setting,
    save: Path,
    say: Callable[[str], None] = print,
    minutes: float | None = None,
    static: Sequence[str] = (),
) -> dict[str, Any]:
    """Measures the rows that `save` lacks, smallest batches first, each on disk when it is done.

    With `minutes` it ends by itself; a row that is under way then is given up.
    """
    end = None if minutes is None else time.monotonic() + 60 * minutes
    try:
        return _rows(shapes, batches, setting, save, say, static, lambda: _check_time(end))
    except TimeOverError:
        say(f"the {minutes:g} minutes are over; the same command goes on from here")
        return opened(save, identity(setting))


def _check_time(end: float | None) -> None:
    if end is not None and time.monotonic() > end:
        raise TimeOverError


def _rows(
    shapes: Sequence[str],
    batches: Sequence[int],
    setting: Setting,
    save: Path,
    say: Callable[[str], None],
    static: Sequence[str],
    tick: Callable[[], None],
) -> dict[str, Any]:
    body = opened(save, identity(setting))
    done = {(row["shape"], row["batch"]) for row in body["rows"]}
    for shape in shapes:
        todo = [batch for batch in sorted(batches) if (shape, batch) not in done]
        config, model = config_of(shape), None
        sizes = architecture(config, setting.dtype)
        for batch in todo:
            tick()
            asked = request(
                config,
                text=setting.text,
                images=1,
                new_tokens=setting.new_tokens,
                batch=batch,
                size=setting.size,
            )
            found: dict[str, Found] | str | None = too_large(sizes, asked, body["memory"])
            if found is None:
                say(f"{shape}, batch {batch}: {asked.text} text + {asked.visual} visual tokens")
                model = model or build(config, setting.device, setting.dtype, setting.attention)
                found = timed(model, sizes, asked, setting, static, tick)
            row: dict[str, Any] = {"shape": shape, "batch": batch, "visual": asked.visual}
            if isinstance(found, str):
                say(f"{shape}, batch {batch}: skipped, {found}")
                row["skipped"] = found
            else:
                row["found"] = {name: asdict(one) for name, one in found.items()}
            body["rows"].append(row)
            part = save.with_suffix(".part")
            part.write_text(json.dumps(body, indent=1) + "\n")
            part.replace(save)
            gc.collect()
            if setting.device.startswith("cuda"):
                torch.cuda.empty_cache()
        del model
        gc.collect()
    return body


def main(
    shape: Annotated[
        list[str] | None, typer.Option(help=f"By default {', '.join(SHAPES)}.")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="By default 1, 8, 32.")] = None,
    output_tokens: Annotated[int, typer.Option(min=2)] = Setting.new_tokens,
    repeats: Annotated[int, typer.Option(min=1)] = Setting.repeats,
    attention: Annotated[str, typer.Option(help="sdpa or flash_attention_2.")] = Setting.attention,
    save: Annotated[Path, typer.Option(help="JSON of the rows; given again, it goes on.")] = SAVE,
    minutes: Annotated[float, typer.Option(help="It ends by itself after so many.")] = 5.0,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Small shapes on the CPU; without compiled rows.")
    ] = False,
) -> None:
    """Measures what docs/gpu.md shows, and prints the page; needs a CUDA device."""
    if not torch.cuda.is_available() and not rehearse:
        print(
            "there is no CUDA device here, so nothing was measured; docs/gpu.md stays as it is",
            file=sys.stderr,
        )
        raise typer.Exit(1)
    setting = Setting(new_tokens=output_tokens, repeats=repeats, attention=attention)
    shapes, batches = shape or SHAPES, batch or BATCHES
    if rehearse:
        setting, shapes, batches = REHEARSED, shape or ("tiny-20m",), batch or (1, 2)
    try:
        body = run(
            shapes, batches, setting, save, minutes=minutes, static=() if rehearse else STATIC
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    print(gpu(body))


if __name__ == "__main__":
    typer.run(main)
