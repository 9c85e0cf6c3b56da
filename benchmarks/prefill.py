"""Prefill, decode and cache of a random-weight LLaVA shape apart: measured ratios beside their FLOPs caps.

`foveate bench` times whole generations; this times single forwards, and the caches by themselves. A ratio above its
cap by more than 3 % is a bug in the measurement and is printed in red; "plain again" is the noise.
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import DynamicCache

import foveate
from foveate.cost.configurations import SHAPES, config_of
from foveate.cost.flops import cost_of_counts, kept_by, shapes
from foveate.cost.plan import Request, request
from foveate.cost.vision import vision_flops
from foveate.engine.anatomy import anatomy_of
from foveate.engine.assumptions import cache_name
from foveate.methods import parse
from foveate.timing.race import SLACK, build, faster, in_turn, inputs
from foveate.versions import versions

TEXT = 64
console = Console()


def paired(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds, and median of plain / contestant taken turn by turn."""

    def seconds(run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    times = in_turn({name: lambda run=run: seconds(run) for name, run in runs.items()}, repeats)
    return {
        name: {"seconds": statistics.median(taken), "ratio": faster(times["plain"], taken)}
        for name, taken in times.items()
    }


@torch.inference_mode()
def prefills(model: Any, asked: Request, specs: list[str], repeats: int) -> dict[str, Any]:
    """Prefill of every method against the plain model, with the cap that FLOPs set."""
    given, shape, layers = (
        inputs(model.config, asked, model),
        shapes(model),
        anatomy_of(model).depth,
    )
    tower = vision_flops(model, given) / asked.batch
    plain = cost_of_counts(shape, [asked.visual] * layers, text=TEXT, tower=tower)

    def under(spec: str) -> Callable[[], Any]:
        methods = parse(spec) if spec != "keep-all" else parse("fastv:layer=2,keep=1.0")

        def run() -> None:
            with foveate.apply(model, *methods):
                model(**given, logits_to_keep=1, use_cache=True)

        return run

    def untouched() -> None:
        model(**given, logits_to_keep=1, use_cache=True)

    runs = {"plain": untouched, "plain again": untouched, **{spec: under(spec) for spec in specs}}
    found = paired(runs, repeats)
    for spec, row in found.items():
        methods = [] if spec in ("plain", "plain again", "keep-all") else parse(spec)
        kept = kept_by(methods, layers, asked.visual)
        row["cap"] = plain.flops / cost_of_counts(shape, kept, text=TEXT, tower=tower).flops
        row["of_cap"] = row["ratio"] / row["cap"]
    return found


@torch.inference_mode()
def decodes(model: Any, batch: int, length: int, steps: int, repeats: int) -> dict[str, Any]:
    """Decode steps at a context of `length` tokens: DynamicCache, our cache, and our cache under a keep-all method."""
    config = model.config.get_text_config()
    heads, size = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    full = torch.randn(batch, heads, length, size)

    def steps_with(make: Callable[[], Any]) -> Callable[[], Any]:
        cache = make()
        for layer in range(config.num_hidden_layers):
            cache.update(full, full, layer)
        return lambda: on(model, cache, batch, steps)

    plain, ours = (lambda: DynamicCache(config=config)), (lambda: foveate.KeptCache(config))
    return paired(
        {
            "plain": steps_with(plain),
            "plain again": steps_with(plain),
            "our cache": steps_with(ours),
        },
        repeats,
    )


def on(model: Any, cache: Any, batch: int, steps: int) -> None:
    """Decodes some steps on a cache, and leaves it as it was."""
    word = torch.full((batch, 1), 11)
    for _ in range(steps):
        model(input_ids=word, **{cache_name(model): cache}, use_cache=True)
    cache.crop(-steps)


@torch.inference_mode()
def pruned_decodes(
    model: Any, asked: Request, specs: list[str], steps: int, repeats: int
) -> dict[str, Any]:
    """Decode steps after a real prefill: the plain model against every method, its hooks included."""
    given = inputs(model.config, asked, model)

    def started() -> Any:
        return getattr(model(**given, logits_to_keep=1, use_cache=True), cache_name(model))

    def under(spec: str) -> Callable[[], Any]:
        methods = parse(spec)
        with foveate.apply(model, *methods):
            cache = started()

        def run() -> None:
            with foveate.apply(model, *methods):
                on(model, cache, asked.batch, steps)

        return run

    first, second = started(), started()
    plain = {
        "plain": lambda: on(model, first, asked.batch, steps),
        "plain again": lambda: on(model, second, asked.batch, steps),
    }
    return paired({**plain, **{spec: under(spec) for spec in specs}}, repeats)


def show(title: str, found: dict[str, Any], per: int = 1) -> None:
    """Prints one comparison."""
    table = Table(title=title)
    for column in ("", "time", "x faster", "FLOPs cap", "of cap"):
        table.add_column(column, justify="right")
    for name, row in found.items():
        cap = row.get("cap")
        color = "red" if cap is not None and row["ratio"] > SLACK * cap else "default"
        cells = ("", "") if cap is None else (f"{cap:.2f}", f"{row['of_cap']:.0%}")
        table.add_row(
            name,
            f"{row['seconds'] / per * 1e3:.1f} ms",
            f"[{color}]{row['ratio']:.3f}[/{color}]",
            *cells,
        )
    console.print(table)


def main(
    shape: Annotated[str, typer.Option(help=f"A LLaVA of {', '.join(SHAPES)}.")] = "smol-135m",
    method: Annotated[
        list[str] | None, typer.Option(help="Methods to time; may be repeated.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1)] = 1,
    repeats: Annotated[int, typer.Option(min=1)] = 7,
    lengths: Annotated[
        str, typer.Option(help="Contexts for the cache comparison.")
    ] = "256,1024,2048",
    threads: Annotated[int, typer.Option(help="CPU threads (0: torch's choice).")] = 0,
    save: Annotated[Path | None, typer.Option(help="Write all figures as JSON.")] = None,
) -> None:
    """Times prefill, decode and cache of a random-weight LLaVA shape on this machine's CPU."""
    if threads:
        torch.set_num_threads(threads)
    config = config_of(shape)
    asked = request(config, text=TEXT, images=1, new_tokens=1, batch=batch)
    specs = method or [
        *("fastv:layer=2,keep=0.5", "fastv:layer=2,keep=0.25", "fastv:layer=2,keep=0.125"),
        *(f"vtw:layer={config.text_config.num_hidden_layers // 2}", "random:layer=0,keep=0.25"),
        "downsample:layer=0,keep=0.25",
    ]
    model = build(config, "cpu")
    body: dict[str, Any] = {
        "shape": shape, "batch": batch, "repeats": repeats, "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(), "machine": platform.machine(),
        **versions(),
    }  # fmt: skip
    body["prefill"] = prefills(model, asked, ["keep-all", *specs], repeats)
    show(
        f"prefill, {shape}, batch {batch}, {TEXT} text + {asked.visual} visual tokens",
        body["prefill"],
    )
    body["decode"] = pruned_decodes(model, asked, specs[:4], 8, repeats)
    show(f"decode per token after that prefill, batch {batch}", body["decode"], 8)
    body["cache"] = {}
    for samples in (1, 8):
        for length in (int(n) for n in lengths.split(",")):
            found = decodes(model, samples, length, 8, repeats)
            body["cache"][f"batch {samples}, {length} tokens"] = found
            show(
                f"decode per token by cache, batch {samples}, {length} tokens of context", found, 8
            )
    body["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    console.print(f"peak memory of the process: {body['peak_memory_mb']:.0f} MB")
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        save.write_text(json.dumps(body, indent=1))


if __name__ == "__main__":
    typer.run(main)
