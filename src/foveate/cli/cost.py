"""`foveate cost`: FLOPs and KV bytes from a configuration alone."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from ..cost import plan
from ..cost.architecture import Architecture, architecture
from ..cost.configurations import SHAPES, config_of
from ..methods import parse
from . import options
from .output import console, flops, print_json
from .sheet import Sheet


@options.with_request()
def cost(
    asked: options.Asked,
    model: Annotated[
        str, typer.Argument(help=f"{', '.join(SHAPES)}, a config.json or its folder, or a hub id.")
    ],
    method: options.Methods = None,
    layers: options.Layers = None,
    dtype: options.Dtype = "auto",
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Also what each layer keeps and costs.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """What a prompt costs under methods: prefill, decode, tower, head, KV cache. Nothing is run or downloaded."""
    specs = {spec: parse(spec) for spec in dict.fromkeys(method or [])}
    config = config_of(model, layers)
    found = architecture(config, dtype)
    request = asked.request(config)
    base = plan.cost_of(found, request)
    rows = {}
    for spec, methods in {"unpruned": [], **specs}.items():
        row = plan.cost_of(found, request, methods)
        rows[spec] = {
            "flops": {k: v for k, v in vars(row).items() if k != "kv_bytes"} | {"total": row.flops},
            "kv_bytes": row.kv_bytes,
            "ratio": row.ratio(base),
            "papers": plan.papers(found, request, methods),
            "layers": _by_layer(found, request, plan.kept(found, request, methods)),
        }
    body = {
        "model": model,
        "family": found.family,
        "request": _told(request),
        "kv_dtype_bytes": found.shapes.bytes,
    }
    if as_json:
        print_json({**body, "methods": rows})
        return
    _print(found, request, rows)
    if per_layer:
        _print_layers(rows)


def _told(asked: plan.Request) -> dict[str, int]:
    numbers = {k: v for k, v in vars(asked).items() if k != "pictures"}
    return {
        **numbers,
        "pictures": len(asked.pictures),
        "tiles": sum(len(p.tiles) for p in asked.pictures),
    }


def _by_layer(model: Architecture, asked: plan.Request, kept: list[int]) -> list[dict[str, float]]:
    """Per decoder layer: visual tokens kept, prefill and decode FLOPs and KV bytes of the batch."""
    out = []
    for layer, k in zip(model.shapes.layers, kept, strict=True):
        seen = asked.text + k
        one = {
            "kept": k,
            "prefill": asked.batch * layer.flops(seen),
            "decode": asked.batch * layer.steps(asked.new_tokens - 1, seen),
            "kv_bytes": asked.batch * layer.cache(seen + asked.new_tokens - 1) * model.shapes.bytes,
        }
        out.append(one)
    return out


def _print(model: Architecture, asked: plan.Request, rows: dict[str, Any]) -> None:
    columns = ("prefill", "decode", "tower", "head", "all", "KV cache", "FastV's", "PDrop's")
    table = Sheet("method", columns)
    for spec, row in rows.items():
        parts = [(row["flops"][p], row["ratio"][p]) for p in ("prefill", "decode", "tower", "head")]
        parts.append((row["flops"]["total"], row["ratio"]["flops"]))
        first = spec == "unpruned"
        cells = [flops(value) if first else _times(ratio) for value, ratio in parts]
        cells.append(
            f"{row['kv_bytes'] / 1e6:.0f} MB" if first else _times(row["ratio"]["kv_bytes"])
        )
        said = [row["papers"][name] for name in ("fastv", "pyramiddrop")]
        cells += [flops(p["flops"]) if first else f"{p['ratio']:.3f}x" for p in said]
        table.add(spec, *cells)
    console.print(table)
    console.print(
        f"{model.family}, {len(model.shapes.layers)} layers; batch {asked.batch} of {asked.text} text + {asked.visual} "
        f"visual tokens, {asked.new_tokens} new. FLOPs count 2 per multiply-accumulate; the last two columns are one "
        "prefill in the papers' conventions (1 per multiply-accumulate, decoder alone). Ranking is left out; comparing "
        "dropped with kept tokens (weigh=, merge=mean) is in all FLOPs.",
        highlight=False,
    )


def _times(ratio: float) -> str:
    return "-" if math.isnan(ratio) else f"{ratio:.3f}x"  # of what is 0 in the unpruned model too


def _print_layers(rows: dict[str, Any]) -> None:
    columns = ("kept", "prefill", "KV cache")
    table = Sheet("layer", columns)
    for spec, row in rows.items():
        table.group(spec)
        for number, layer in enumerate(row["layers"]):
            size = f"{layer['kv_bytes'] / 1e6:.1f} MB"
            table.add(str(number), str(int(layer["kept"])), flops(layer["prefill"]), size)
    console.print(table)
