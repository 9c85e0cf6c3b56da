"""`foveate doctor`: what a model is, what is supported, and whether the engine is right on its weights."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.markup import escape
from transformers import AutoConfig, AutoModelForImageTextToText

from ..doctor.examine import Finding, examine
from ..doctor.selfcheck import placeholder_inputs, self_check
from ..engine.anatomy import hollow
from ..models.load import BUNDLED, load
from ..models.loaded import Loaded
from . import options
from .output import console, errors, print_json
from .sheet import Sheet


def doctor(
    model: Annotated[
        str, typer.Argument(help="scenes or smol (bundled), a folder, a hub id, or a config.json.")
    ],
    check: Annotated[bool, typer.Option(help="Run the self-check on the weights.")] = True,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    attention: Annotated[str, typer.Option(help="sdpa or eager.")] = "sdpa",
    as_json: options.Json = False,
) -> int:
    """Say whether and how foveate works with a model; exits with 1 if it does not, or if a check fails."""
    path = Path(model)
    bare = path.suffix == ".json" or (path.is_dir() and not any(path.glob("*.safetensors")))
    if path.suffix == ".json" and not path.is_file():
        raise ValueError(f"there is no file {model!r}")
    if bare or not check:
        found = examine(model, Loaded(hollow(_config(path if bare else Path(model), model))))
        found.note = "no weights, so no self-check" if bare else "--no-check"
    else:
        found = _with_weights(model, device, dtype, attention)
    if as_json:
        print_json({**asdict(found), "healthy": found.healthy})
    else:
        _print(found)
    return 0 if found.healthy else 1


def _config(path: Path, name: str) -> Any:
    source = str(BUNDLED.get(name, path))
    try:
        config = AutoConfig.from_pretrained(source)
    except Exception as error:  # a damaged file fails in many ways
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"cannot read a model's configuration from {name!r}: {first}") from error
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise ValueError(f"{name!r} is a {config.model_type} model, not a vision-language model")
    return config


def _with_weights(name: str, device: str, dtype: str, attention: str) -> Finding:
    with errors.status("loading"):
        loaded = load(name, device=device, dtype=dtype, attention=attention)
    found = examine(name, loaded)
    if not found.supported:
        return found
    pixels = np.random.default_rng(0).integers(0, 256, (336, 336, 3), dtype=np.uint8)
    try:
        inputs = loaded.inputs([pixels], "What is in the image?")
        found.note = "on a picture of noise"
    except (
        Exception
    ) as error:  # processors are as many as families; without one, bare placeholders will do
        inputs = loaded.moved(placeholder_inputs(loaded.model))
        found.note = (
            f"on bare placeholders, for the processor said: {type(error).__name__}: {error}"
        )
    with errors.status("checking"):
        found.checks = self_check(loaded.model, inputs)
    return found


def _print(found: Finding) -> None:
    table = Sheet("", ("",), words=("",), title=f"{found.name}: {found.family}")
    for key, value in found.facts.items():
        shown = (
            ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else value
        )
        told = ", ".join(map(str, shown)) if isinstance(shown, list) else str(shown)
        table.add(key, escape(told))
    no = f"[red]no[/red]: {escape(found.reason or '')}"
    table.add("supported", "[green]yes[/green]" if found.supported else no)
    for one in found.checks:
        mark = "[green]ok[/green]" if one.passed else "[red]FAILED[/red]"
        against = "" if one.against is None else f"; the plain model is {one.against:.1e} away"
        table.add(one.name, f"{mark} (off by {one.error:.1e} of the largest logit{against})")
    if found.note:
        table.add("self-check", escape(found.note))
    console.print(table)
