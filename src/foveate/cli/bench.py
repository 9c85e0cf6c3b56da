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
from rich.progress import Progress

from ..core.method import Method
from ..cost import plan
from ..cost.architecture import Architecture, architecture
from ..cost.configurations import SHAPES, config_of
from ..engine.anatomy import anatomy_of
from ..files import read_text
from ..methods import parse
from ..models.load import check_device
from ..timing import race as bench
from ..timing.breakdown import PARTS, parts
from ..versions import versions
from . import options, tables
from .output import console, errors, print_json, write_json, wrote
from .sheet import Sheet

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
    static: Annotated[
        bool,
        typer.Option(
            "--static",
            help="Also run plain transformers, and methods that decide in the prefill alone, with a static cache and a "
            "compiled decode step: the strongest baseline.",
        ),
    ] = False,
    save: Annotated[
        Path | None, typer.Option(help="Write all figures to this JSON file, for --compare.")
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(help="What --save wrote of an earlier run, to be set beside this one."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Measure the speed of random-weight shapes under methods, in turn with plain transformers."""
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
        model,
        sizes,
        request,
        bench.inputs(config, request, model, size),
        contestants,
        repeats,
        [bench.PLAIN, *contestants] if static else [],
    )
    body |= {"found": {name: asdict(one) for name, one in found.items()}, "parts": where}
    body["exceeded"] = {name: one.exceeded for name, one in found.items() if one.exceeded}
    _finish(body, old, save, as_json)


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
    static: list[str],
) -> tuple[dict[str, bench.Found], dict[str, dict[str, float]]]:
    """The race, then one generation of each contestant taken apart."""
    where: dict[str, dict[str, float]] = {}
    many = len(bench.contestants(contestants, len(sizes.shapes.layers), static))
    with Progress(console=errors, transient=True) as progress:
        task = progress.add_task("timing", total=(repeats + 1) * many + len(contestants) + 1)

        def tick() -> None:
            progress.advance(task)

        found = bench.race(model, sizes, asked, given, contestants, repeats, tick, static)
        for name, methods in {bench.KEEP_ALL: [], **contestants}.items():
            where[name] = parts(model, given, methods, asked.new_tokens)
            tick()
    return found, where


def _read(path: Path) -> dict[str, Any]:
    """An earlier run's JSON."""
    try:
        body = json.loads(read_text(path).splitlines()[-1])
    except (OSError, IndexError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(body, dict) or not isinstance(body.get("found"), dict):
        raise ValueError(f"{path} is no result of foveate bench")
    return body


def _finish(
    body: dict[str, Any], old: dict[str, Any] | None, save: Path | None, as_json: bool
) -> None:
    """Prints tables, or JSON; and writes the JSON."""
    body["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if as_json:
        print_json(body)
    else:
        _print(body)
        if old is not None:
            _print_beside(body, old)
    if save is not None:
        write_json(save, body)
        wrote(save, "all figures of this run, for --compare")


def _print(body: dict[str, Any]) -> None:
    asked = body["request"]
    title = (
        f"{body['shape']} ({body['layers']} layers), batch {asked['batch']} of {asked['text']} text + "
        f"{asked['visual']} visual tokens, {asked['new_tokens']} new; {body['device']}, {body['dtype']}, "
        f"{body['attention']}"
    )
    noise = f" {tables.ABOVE} is above its cap, so wrongly measured." if body["exceeded"] else ""
    columns = ("first token", "x (cap)", "per token", "x (cap)", "tokens/s", "all x", "peak")
    table = Sheet(
        "method",
        columns,
        title=title,
        caption=f"x: times faster than plain{_fixed(body)}; (cap): at most, on any device.{noise}",
    )
    for name, one in body["found"].items():
        memory = "-" if one["memory"] is None else f"{one['memory'] / 1e6:.0f} MB"
        total = f"{one['ratio']['total']:.2f}{_mark(one, 'total')}"
        times = (*_timed(one, "first"), *_timed(one, "further"))
        table.add(name, *times, f"{one['throughput']:.1f}", total, memory)
    console.print(table)
    console.print()
    table = Sheet(
        "ms", (*PARTS, "of a step"), title="parts of one generation (the clock costs a little)"
    )
    for name, one in body["parts"].items():
        share = f"{one['control'] / one['decode']:.1%}" if one["decode"] else "-"
        table.add(name, *(f"{one[part] * 1e3:.1f}" for part in PARTS), share)
    console.print(table)


def _fixed(body: dict[str, Any]) -> str:
    """What rows with a static cache are set beside, where there are any."""
    any_static = any(name.endswith(bench.STATIC) for name in body["found"])
    return f" ({bench.STATIC[2:]}: than plain of that kind)" if any_static else ""


def _mark(one: dict[str, Any], part: str) -> str:
    return tables.ABOVE if part in one["exceeded"] else ""


def _timed(one: dict[str, Any], part: str) -> tuple[str, str]:
    """Time, and how many times faster with its cap; marked above it."""
    if part not in one["ratio"]:
        return "-", "-"
    cap = one["cap"].get(part)
    text = f"{one['ratio'][part]:.2f}{_mark(one, part)}" + ("" if cap is None else f" ({cap:.2f})")
    return f"{one[part] * 1e3:.1f} ms", text


def _check_alike(body: dict[str, Any], old: dict[str, Any]) -> None:
    """Raises ValueError if the earlier run is of something else; before this one takes its time."""
    other = [key for key in _SAME if body.get(key) != old.get(key)]
    if other:
        told = ", ".join(f"{key} {old.get(key)!r} (now {body.get(key)!r})" for key in other)
        raise ValueError(f"the earlier run is of something else: {told}; compare like with like")


def _print_beside(body: dict[str, Any], old: dict[str, Any]) -> None:
    """This run's times over an earlier one's, of the same contestants."""
    columns = ("first token", "per token")
    table = Sheet("method", columns, title="\nbeside the earlier run: its time over this one's")
    for name, one in body["found"].items():
        before = old["found"].get(name)
        if before is not None:
            table.add(name, *(_over(before[part], one[part]) for part in ("first", "further")))
    console.print(table)


def _over(before: float | None, now: float) -> str:
    """A ratio of times, where both were taken: one new token leaves none per token."""
    return "-" if before is None or math.isnan(now) else f"{before / now:.2f}x"
