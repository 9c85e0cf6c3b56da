"""`foveate bench`: speed of random-weight shapes under methods, each beside its cap."""

from __future__ import annotations

import json
import math
import platform
import resource
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich import box
from rich.progress import Progress
from rich.table import Table

from ..core.method import Method
from ..cost import plan
from ..cost.architecture import Architecture, architecture
from ..cost.configurations import SHAPES, config_of
from ..engine.anatomy import anatomy_of
from ..methods import parse
from ..models.load import check_device
from ..timing import race as bench
from ..timing.breakdown import PARTS, parts
from ..versions import versions
from . import options
from .output import console, errors, print_json, write_json

_DEFAULT = ("fastv:layer=2,keep=0.5", "fastv:layer=2,keep=0.25", "random:layer=0,keep=0.25")
_SAME = ("shape", "layers", "request", "device", "dtype", "attention")


@options.with_request("visual_tokens", output_tokens=16)
def benchmark(
    asked: options.Asked,
    shape: Annotated[
        str, typer.Option(help=f"{', '.join(SHAPES)}, or a config.json.")
    ] = "smol-135m",
    method: options.Methods = None,
    layers: options.Layers = None,
    repeats: options.Repeats = 5,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    attention: Annotated[str, typer.Option(help="sdpa, eager or flash_attention_2.")] = "sdpa",
    save: Annotated[Path | None, typer.Option(help="Write the JSON to a file too.")] = None,
    compare: Annotated[
        Path | None, typer.Option(help="JSON of an earlier run, to be set beside this one.")
    ] = None,
) -> None:
    """Time shapes of random weights, in turn with plain transformers; the last line printed is JSON."""
    contestants = {spec: parse(spec) for spec in dict.fromkeys(method or _DEFAULT)}
    check_device(device)
    options.writable(save)
    old = None if compare is None else _read(compare)
    kind = ("bfloat16" if device.startswith("cuda") else "float32") if dtype == "auto" else dtype
    config = config_of(shape, layers)
    size = options.size(asked.image_size)
    sizes = architecture(config, kind)
    request = asked.request(config)
    if not request.pictures:
        raise ValueError("--images 0 leaves nothing to drop; give 1 or more")
    for one in (one for methods in contestants.values() for one in methods):
        one.check(len(sizes.shapes.layers))
    model = bench.build(config, device, kind, attention)
    body = _told(shape, model, request, repeats)
    if old is not None:
        _check_alike(body, old)
    found, where = _run(
        model, sizes, request, bench.inputs(config, request, model, size), contestants, repeats
    )
    body |= {"found": {name: asdict(one) for name, one in found.items()}, "parts": where}
    body["exceeded"] = {name: one.exceeded for name, one in found.items() if one.exceeded}
    _finish(body, old, save)


def _told(shape: str, model: Any, asked: plan.Request, repeats: int) -> dict[str, Any]:
    """What was run where."""
    cuda = model.device.type == "cuda"
    return {
        "shape": shape,
        "layers": anatomy_of(model).depth,
        "request": {k: v for k, v in vars(asked).items() if k != "pictures"}
        | {"pictures": len(asked.pictures)},
        "device": torch.cuda.get_device_name(model.device) if cuda else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype)[6:],
        "attention": model.config._attn_implementation,
        "repeats": repeats,
        "versions": versions(),
    }


def _run(
    model: Any,
    sizes: Architecture,
    asked: plan.Request,
    given: dict[str, torch.Tensor],
    contestants: dict[str, list[Method]],
    repeats: int,
) -> tuple[dict[str, bench.Found], dict[str, dict[str, float]]]:
    """The race, then one generation of each contestant taken apart."""
    where: dict[str, dict[str, float]] = {}
    with Progress(console=errors, transient=True) as progress:
        task = progress.add_task(
            "timing", total=(repeats + 1) * (len(contestants) + 3) + len(contestants) + 1
        )

        def tick() -> None:
            progress.advance(task)

        found = bench.race(model, sizes, asked, given, contestants, repeats, tick)
        for name, methods in {bench.KEEP_ALL: [], **contestants}.items():
            where[name] = parts(model, given, methods, asked.new_tokens)
            tick()
    return found, where


def _read(path: Path) -> dict[str, Any]:
    """An earlier run's JSON."""
    try:
        body = json.loads(path.read_text().splitlines()[-1])
    except (OSError, IndexError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(body, dict) or not isinstance(body.get("found"), dict):
        raise ValueError(f"{path} is no result of foveate bench")
    return body


def _finish(body: dict[str, Any], old: dict[str, Any] | None, save: Path | None) -> None:
    """Tables, then the JSON as the last line."""
    _print(body)
    if old is not None:
        _print_beside(body, old)
    body["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if save is not None:
        write_json(save, body)
    print_json(body)


def _print(body: dict[str, Any]) -> None:
    asked = body["request"]
    title = (
        f"{body['shape']} ({body['layers']} layers), batch {asked['batch']} of {asked['text']} text + "
        f"{asked['visual']} visual tokens, {asked['new_tokens']} new; {body['device']}, {body['dtype']}, "
        f"{body['attention']}"
    )
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", overflow="fold")
    for column in ("first token", "x (cap)", "per token", "x (cap)", "tokens/s", "all x", "peak"):
        table.add_column(column, justify="right")
    for name, one in body["found"].items():
        memory = "-" if one["memory"] is None else f"{one['memory'] / 2**20:.0f} MB"
        table.add_row(
            name.replace(",", ", "),
            *_timed(one, "first"),
            *_timed(one, "further"),
            f"{one['throughput']:.1f}",
            f"{one['ratio']['total']:.2f}",
            memory,
        )
    console.print(table)
    table = Table(
        title="parts of one generation, ms (the clock costs a little)",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("", overflow="fold")
    for column in PARTS:
        table.add_column(column, justify="right")
    table.add_column("of a step", justify="right")
    for name, one in body["parts"].items():
        share = f"{one['control'] / one['decode']:.1%}" if one["decode"] else "-"
        table.add_row(name.replace(",", ", "), *(f"{one[part] * 1e3:.1f}" for part in PARTS), share)
    console.print(table)
    if body["exceeded"]:
        console.print(f"[red]above the cap, so wrongly measured:[/red] {body['exceeded']}")


def _timed(one: dict[str, Any], part: str) -> tuple[str, str]:
    """Time, and how many times faster with its cap; red above it."""
    if part not in one["ratio"]:
        return "-", "-"
    cap = one["cap"].get(part)
    text = f"{one['ratio'][part]:.2f}" + ("" if cap is None else f" ({cap:.2f})")
    return f"{one[part] * 1e3:.1f} ms", f"[red]{text}[/red]" if part in one["exceeded"] else text


def _check_alike(body: dict[str, Any], old: dict[str, Any]) -> None:
    """Raises ValueError if the earlier run is of something else; before this one takes its time."""
    other = [key for key in _SAME if body.get(key) != old.get(key)]
    if other:
        told = ", ".join(f"{key} {old.get(key)!r} (now {body.get(key)!r})" for key in other)
        raise ValueError(f"the earlier run is of something else: {told}; compare like with like")


def _print_beside(body: dict[str, Any], old: dict[str, Any]) -> None:
    """This run's times over an earlier one's, of the same contestants."""
    table = Table(
        title="beside the earlier run: its time over this one's",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in ("", "first token", "per token"):
        table.add_column(column, justify="right" if column else "left", overflow="fold")
    for name, one in body["found"].items():
        before = old["found"].get(name)
        if before is not None:
            table.add_row(
                name.replace(",", ", "),
                *(_over(before[part], one[part]) for part in ("first", "further")),
            )
    console.print(table)


def _over(before: float | None, now: float) -> str:
    """A ratio of times, where both were taken: one new token leaves none per token."""
    return "-" if before is None or math.isnan(now) else f"{before / now:.2f}x"
