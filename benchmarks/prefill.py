"""Prefill and decode of random-weight LLaVA shapes: measured ratios beside their FLOPs caps.

Every repetition runs the baseline (plain transformers: sdpa, DynamicCache) and then each contestant, and the ratio
is taken within the repetition; medians of these ratios are reported. The order rotates from repetition to
repetition. "plain again" is the baseline against itself: what it differs from 1 by is the noise. A ratio above its
cap by more than 3 % is a bug in the measurement and is printed in red.
"""

from __future__ import annotations

import gc
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, DynamicCache, LlamaConfig, LlavaConfig

import foveate
from foveate.measure.cost import cost_of_counts, kept_by, shapes
from foveate.methods import parse

IMAGE, TEXT = 9, 64
console = Console()


@dataclass(frozen=True)
class Shape:
    """A decoder's size."""

    layers: int
    hidden: int
    inner: int
    heads: int
    groups: int


SHAPES = {"smol-135m": Shape(30, 576, 1536, 9, 3), "tiny-20m": Shape(12, 384, 1024, 6, 2)}


def build(shape: Shape) -> Any:
    """A LLaVA of random weights with 576 visual tokens an image; its tower is tiny, so that the decoder is timed."""
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=336, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=4096, hidden_size=shape.hidden, intermediate_size=shape.inner, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.groups, max_position_embeddings=8192,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, vision_feature_layer=-1)
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config).eval()


def inputs(batch: int) -> dict[str, torch.Tensor]:
    """A prompt of `TEXT` words with one image in the middle, `batch` times."""
    words = torch.randint(10, 4000, (batch, TEXT))
    ids = torch.cat([words[:, : TEXT // 2], torch.full((batch, 576), IMAGE), words[:, TEXT // 2 :]], 1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(batch, 3, 336, 336)}


def seconds(run: Callable[[], Any]) -> float:
    """Wall-clock time of one call."""
    gc.collect()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def paired(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds, and median of plain / contestant taken repetition by repetition, after one warm-up."""
    order = list(runs.items())
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in order[turn % len(order) :] + order[: turn % len(order)]:
            taken = seconds(run)
            if turn:
                times[name].append(taken)
    return {
        name: {
            "seconds": statistics.median(taken),
            "ratio": statistics.median(p / t for p, t in zip(times["plain"], taken, strict=True)),
        }
        for name, taken in times.items()
    }


@torch.inference_mode()
def prefills(model: Any, specs: list[str], batch: int, repeats: int) -> dict[str, Any]:
    """Prefill of every method against the plain model, with the cap that FLOPs set."""
    given, shape, layers = inputs(batch), shapes(model), len(model.model.language_model.layers)
    plain = cost_of_counts(shape, [576] * layers, text=TEXT)

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
        asked = [1] if spec.startswith("fastv") else []
        cost = cost_of_counts(shape, kept_by(methods, layers, 576), text=TEXT, asked=asked)
        row["cap"] = plain.flops / cost.flops
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
        word = torch.full((batch, 1), 11)

        def run() -> None:
            for _ in range(steps):
                model(input_ids=word, past_key_values=cache, use_cache=True)
            cache.crop(-steps)

        return run

    plain, ours = (lambda: DynamicCache(config=config)), (lambda: foveate.KeptCache(config))
    return paired(
        {"plain": steps_with(plain), "plain again": steps_with(plain), "our cache": steps_with(ours)}, repeats
    )


@torch.inference_mode()
def pruned_decodes(model: Any, specs: list[str], batch: int, steps: int, repeats: int) -> dict[str, Any]:
    """Decode steps after a real prefill: the plain model against every method, its hooks included."""
    given = inputs(batch)
    word = torch.full((batch, 1), 11)

    def started() -> Any:
        return model(**given, logits_to_keep=1, use_cache=True).past_key_values

    def on(cache: Any) -> None:
        for _ in range(steps):
            model(input_ids=word, past_key_values=cache, use_cache=True)
        cache.crop(-steps)

    def under(spec: str) -> Callable[[], Any]:
        methods = parse(spec)
        with foveate.apply(model, *methods):
            cache = started()

        def run() -> None:
            with foveate.apply(model, *methods):
                on(cache)

        return run

    first, second = started(), started()
    plain = {"plain": lambda: on(first), "plain again": lambda: on(second)}
    return paired({**plain, **{spec: under(spec) for spec in specs}}, repeats)


def show(title: str, found: dict[str, Any], per: int = 1) -> None:
    """Prints one comparison."""
    table = Table(title=title)
    for column in ("", "time", "x faster", "FLOPs cap", "of cap"):
        table.add_column(column, justify="right")
    for name, row in found.items():
        cap = row.get("cap")
        color = "red" if cap is not None and row["ratio"] > 1.03 * cap else "default"
        cells = ("", "") if cap is None else (f"{cap:.2f}", f"{row['of_cap']:.0%}")
        table.add_row(name, f"{row['seconds'] / per * 1e3:.1f} ms", f"[{color}]{row['ratio']:.3f}[/{color}]", *cells)
    console.print(table)


def main(
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}.")] = "smol-135m",
    method: Annotated[list[str] | None, typer.Option(help="Methods to time; may be repeated.")] = None,
    batch: Annotated[int, typer.Option(min=1)] = 1,
    repeats: Annotated[int, typer.Option(min=1)] = 7,
    lengths: Annotated[str, typer.Option(help="Contexts for the cache comparison.")] = "256,1024,2048",
    threads: Annotated[int, typer.Option(help="CPU threads (0: torch's choice).")] = 0,
    save: Annotated[Path | None, typer.Option(help="Write all figures as JSON.")] = None,
) -> None:
    """Times prefill, decode and cache of a random-weight LLaVA shape on this machine's CPU."""
    if shape not in SHAPES:
        raise typer.BadParameter(f"{shape!r}; expected one of {', '.join(SHAPES)}")
    if threads:
        torch.set_num_threads(threads)
    half = SHAPES[shape].layers // 2
    specs = method or [
        *("fastv:layer=2,keep=0.5", "fastv:layer=2,keep=0.25", "fastv:layer=2,keep=0.125"),
        *(f"vtw:layer={half}", "random:layer=0,keep=0.25", "downsample:layer=0,keep=0.25"),
    ]
    model = build(SHAPES[shape])
    body: dict[str, Any] = {
        "shape": shape, "batch": batch, "repeats": repeats, "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(), "machine": platform.machine(),
        "torch": torch.__version__, "transformers": transformers.__version__, "foveate": foveate.__version__,
    }  # fmt: skip
    body["prefill"] = prefills(model, ["keep-all", *specs], batch, repeats)
    show(f"prefill, {shape}, batch {batch}, {TEXT} text + 576 visual tokens", body["prefill"])
    body["decode"] = pruned_decodes(model, specs[:4], batch, 8, repeats)
    show(f"decode per token after that prefill, batch {batch}", body["decode"], 8)
    body["cache"] = {}
    for samples in (1, 8):
        for length in (int(n) for n in lengths.split(",")):
            found = decodes(model, samples, length, 8, repeats)
            body["cache"][f"batch {samples}, {length} tokens"] = found
            show(f"decode per token by cache, batch {samples}, {length} tokens of context", found, 8)
    body["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    console.print(f"peak memory of the process: {body['peak_memory_mb']:.0f} MB")
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        save.write_text(json.dumps(body, indent=1))


if __name__ == "__main__":
    typer.run(main)
