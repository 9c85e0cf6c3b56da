"""`foveate advise`: where the time goes, and the most that dropping visual tokens can give, before anything runs."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated, Any

import typer

from ..cost import plan
from ..cost import roofline as limits
from ..cost.architecture import Architecture, architecture
from ..cost.configurations import SHAPES, config_of
from ..cost.devices import DEVICES, Device, device_of
from ..methods import parse
from . import options
from .output import console, print_json
from .sheet import Sheet

_SHARES = (0.5, 0.25, 0.125, 0.0)


@options.with_request()
def advise(
    asked: options.Asked,
    model: Annotated[
        str, typer.Argument(help=f"{', '.join(SHAPES)}, a config.json or its folder, or a hub id.")
    ],
    device: Annotated[
        str, typer.Option(help=f"{', '.join(DEVICES)}, or measure for this machine.")
    ] = "h100",
    method: options.Methods = None,
    dtype: options.Dtype = "auto",
    launch_us: Annotated[
        float | None, typer.Option(min=0, help="Microseconds to start one operation.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Where the time of a request goes, the caps of any visual-token method on it, and the verdict in words."""
    specs = {spec: parse(spec) for spec in dict.fromkeys(method or [])}
    config = config_of(model)
    where = device_of(device, dtype)
    found = architecture(config, dtype if dtype != "auto" else where.dtype)
    request = asked.request(config)
    if not request.visual:
        raise ValueError(
            "the request has no visual tokens, so there are none to drop; give --images or --visual-tokens"
        )
    kept = {
        f"keep {round(share * request.visual)} from layer 0": _flat(found, request, share)
        for share in _SHARES
    }
    kept |= {spec: plan.kept(found, request, methods) for spec, methods in specs.items()}
    where = where if launch_us is None else replace(where, launch=launch_us * 1e-6)
    body = _findings(found, where, request, kept)
    if as_json:
        print_json({"model": model, **body})
    else:
        _print(model, body)


def _flat(model: Architecture, asked: plan.Request, share: float) -> list[int]:
    return [round(share * asked.visual)] * len(model.shapes.layers)


def _findings(
    model: Architecture, device: Device, asked: plan.Request, kept: dict[str, list[int]]
) -> dict[str, Any]:
    base = limits.times(model, device, asked, [asked.visual] * len(model.shapes.layers))
    phases = {name: getattr(base, name) for name in ("tower", "prefill", "decode")}
    ceiling = limits.caps(model, device, asked, [0] * len(model.shapes.layers))
    bytes_held = limits.held(model, asked, [asked.visual] * len(model.shapes.layers))
    return {
        "device": asdict(device),
        "request": {k: v for k, v in vars(asked).items() if k != "pictures"}
        | {"pictures": len(asked.pictures)},
        "phases": {name: {**asdict(p), "bound": p.bound} for name, p in phases.items()},
        "steps": base.steps,
        "total": base.total,
        "launches": sum(
            p.launches * (base.steps if n == "decode" else 1) for n, p in phases.items()
        ),
        "caps": {
            name: asdict(limits.caps(model, device, asked, counts)) for name, counts in kept.items()
        },
        "least_keep": {
            part: limits.least_keep(model, device, asked, part) for part in ("prefill", "total")
        },
        "bytes": bytes_held,
        "verdict": verdict(
            device, asked, base, ceiling, bytes_held, limits.least_keep(model, device, asked)
        ),
    }


def verdict(
    device: Device,
    asked: plan.Request,
    base: limits.Times,
    ceiling: limits.Caps,
    held: float,
    least: int,
) -> list[str]:
    """What to expect, in sentences."""
    many = f"{asked.new_tokens} output token{'s' * (asked.new_tokens > 1)}"
    lines = [
        f"At batch {asked.batch} and {many} no visual-token method can give more than {ceiling.total:.2f}x end to end "
        f"on {device.name}: {ceiling.prefill:.2f}x in the prefill and {ceiling.decode:.2f}x in a decode step, if all "
        f"{asked.visual} visual tokens left before the first layer and ranking cost nothing (the tower runs whole)."
    ]
    shares = {
        "vision tower": base.tower.best, "prefill": base.prefill.best, "decode": base.steps * base.decode.best,
    }  # fmt: skip
    most = max(shares, key=lambda name: shares[name])
    lines.append(f"{shares[most] / base.total:.0%} of the time is {most}.")
    if ceiling.total < 1.1:
        lines.append(
            "It is not worth it here: larger batches, more images or shorter answers would make it so."
        )
    else:
        lines.append(
            f"Below about {least} visual tokens (of {asked.visual}) nothing more is to be gained."
        )
    slow = base.steps * base.decode.launches + base.prefill.launches + base.tower.launches
    if slow > base.total:
        lines.append(
            f"In eager mode starting operations takes about {slow / base.total:.1f} times as long as they do, and "
            "that hides what is saved; CUDA graphs or a serving engine come first."
        )
    if device.memory is not None and held > device.memory:
        lines.append(
            f"Weights and KV cache need {held / 1e9:.0f} GB, more than the device's {device.memory / 1e9:.0f} GB: "
            "this batch does not fit unpruned."
        )
    return lines


def _print(model: str, body: dict[str, Any]) -> None:
    asked = body["request"]
    device = body["device"]
    title = f"{model} on {device['name']}: {device['flops'] / 1e12:.3g} TFLOP/s, {device['bandwidth'] / 1e9:.4g} GB/s"
    columns = ("ms", "compute", "bytes", "launches (eager)", "bound by")
    table = Sheet("at best", columns, words=("bound by",), title=title)
    for name, p in body["phases"].items():
        label = f"decode, each of {body['steps']} steps" if name == "decode" else name
        cells = [f"{p[key] * 1e3:.3f}" for key in ("best", "compute", "bytes", "launches")]
        table.add(label, *cells, p["bound"])
    console.print(table)
    parts = ("prefill", "decode step", "end to end")
    table = Sheet("method", parts, title="\ntimes faster, at most")
    for name, cap in body["caps"].items():
        table.add(name, *(f"{cap[key]:.2f}x" for key in ("prefill", "decode", "total")))
    console.print(table)
    console.print(
        f"batch {asked['batch']} of {asked['text']} text + {asked['visual']} visual tokens, {asked['new_tokens']} new.",
        highlight=False,
    )
    for line in body["verdict"]:
        console.print(line, highlight=False)
