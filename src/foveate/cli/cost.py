"""`foveate cost`: tokens, FLOPs and KV bytes, from a configuration and a processor alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.markup import escape

from ..core.method import Method
from ..cost import plan
from ..cost.architecture import Architecture, architecture
from ..cost.configurations import SHAPES, config_of
from ..methods import parse
from ..models.lengths import Length
from ..models.load import without_weights
from . import options
from .asked import shown
from .output import console, flops, print_json
from .sheet import Sheet


@options.with_request()
def cost(
    asked: options.Asked,
    model: Annotated[
        str | None,
        typer.Argument(help=f"{', '.join(SHAPES)}, a config.json or its folder, or a hub id."),
    ] = None,
    named: Annotated[
        str | None, typer.Option("--model", help="The model, as other commands take it.")
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            "--image",
            help="Count the tokens of this picture by the model's own processor, in place of --images, --visual-tokens "
            "and --prompt-tokens. May be repeated.",
        ),
    ] = None,
    prompt: Annotated[
        str, typer.Option(help="With --image: the prompt, whose tokens are counted.")
    ] = "",
    method: options.Methods = None,
    layers: options.Layers = None,
    dtype: options.Dtype = "auto",
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Also what each layer keeps and costs.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """What a prompt costs under methods: tokens, FLOPs and KV cache. Nothing is run."""
    if (model is None) == (named is None):
        raise ValueError("name one model, such as `foveate cost scenes` or --model scenes")
    name = model or named or ""
    specs = {spec: parse(spec) for spec in dict.fromkeys(method or [])}
    counted: Counted | None = None
    if image:
        counted = _counted(name, image, prompt, asked)
        config = counted.config
    elif prompt:
        raise ValueError("--prompt is counted with --image; without pictures give --prompt-tokens")
    else:
        config = config_of(name, layers)
    if counted is not None and layers is not None:
        raise ValueError("--layers goes with the numbers of a prompt; leave it out with --image")
    found = architecture(config, dtype)
    request = asked.request(config) if counted is None else counted.request
    rows = _rows(found, request, specs)
    body = {
        "model": name,
        "family": found.family,
        "request": _told(request),
        "kv_dtype_bytes": found.shapes.bytes,
    }
    if counted is not None:
        body["prompt"] = counted.told
    if as_json:
        print_json({**body, "methods": rows})
        return
    if counted is not None:
        _print_counted(counted, rows)
    _print(found, request, rows)
    if per_layer:
        _print_layers(rows)


@dataclass(frozen=True)
class Counted:
    """A prompt whose tokens a processor has counted."""

    config: Any
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    found: Length
    request: plan.Request

    @property
    def told(self) -> dict[str, Any]:
        """For JSON."""
        found = self.found
        return {
            "pictures": [
                {"name": name, "size": size, "tokens": count}
                for name, size, count in zip(
                    self.names, self.sizes, found.pictures or [None] * len(self.sizes), strict=True
                )
            ],
            "words": found.words,
            "frame": found.frame,
            "visual": found.visual,
            "total": found.total,
            "most": found.most,
            "tower_known": bool(self.request.pictures),
        }


def _counted(name: str, images: list[str], prompt: str, asked: options.Asked) -> Counted:
    """The prompt's tokens, by the model's processor.

    Raises:
        ValueError: the model has no processor, or a picture cannot be read; or an option is given
            whose number the count replaces.
    """
    replaced = ("prompt_tokens", "images", "image_size", "tiles", "visual_tokens")
    given = [one for one in replaced if getattr(asked, one) != getattr(options.Asked, one)]
    if given:
        raise ValueError(
            f"--{given[0].replace('_', '-')} is a number that --image counts; leave one of them out"
        )
    if name in SHAPES:
        raise ValueError(
            f"{name} is a shape without a processor, so nothing can be counted; give a model's folder or hub id, or "
            "--image-size"
        )
    pictures = [options.picture(one) for one in images]
    loaded = without_weights(name)
    found = loaded.length(pictures, prompt)
    config = loaded.model.config
    request = plan.request_of(
        config,
        found,
        [picture.size for picture in pictures],
        new_tokens=asked.output_tokens,
        batch=asked.batch,
    )
    names = tuple(shown(one) for one in images)
    return Counted(config, names, tuple(picture.size for picture in pictures), found, request)


def _rows(
    found: Architecture, request: plan.Request, specs: dict[str, list[Method]]
) -> dict[str, Any]:
    """What the unpruned model and every method spend."""
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
    return rows


def _print_counted(counted: Counted, rows: dict[str, Any]) -> None:
    """What brings how many tokens, and how many of them each method leaves."""
    found = counted.found
    table = Sheet("part of the prompt", ("tokens",))
    for name, size, count in zip(
        counted.names, counted.sizes, found.pictures or (None,) * len(counted.sizes), strict=True
    ):
        table.add(f"{name} ({size[0]}x{size[1]})", "?" if count is None else str(count))
    if found.pictures is None:
        table.add("all pictures", str(found.visual))
    table.add("your text", str(found.words))
    table.add("chat template", str(found.frame))
    table.add("prompt", str(found.total))
    console.print(table)
    console.print()
    table = Sheet(
        "tokens", ("visual at layer 0", "visual at last layer", "visual, mean", "prompt, mean")
    )
    for spec, row in rows.items():
        kept = [layer["kept"] for layer in row["layers"]]
        mean = sum(kept) / len(kept)
        table.add(spec, str(kept[0]), str(kept[-1]), f"{mean:.0f}", f"{mean + found.text:.0f}")
    console.print(table)
    console.print()
    long = found.too_long(counted.request.new_tokens, counted.names)
    if long is not None:
        console.print(f"[yellow]warning:[/yellow] {escape(long)}.", highlight=False)
    if found.visual and not counted.request.pictures:
        console.print(
            "The tower is left out below: its work on these pictures is not known from the configuration.",
            highlight=False,
        )


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
