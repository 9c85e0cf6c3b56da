"""Loading models: the bundled one by its name, any other by its path or hub id."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from ..engine.anatomy import hollow
from .loaded import Loaded
from .processors import load_processor, pictures_only, pictures_only_note
from .smol.assemble import LEARNED, load_smol

BUNDLED = {name: Path(__file__).parent / name for name in ("scenes", "smol")}


def ships(name: str) -> bool:
    """Whether the weights of the bundled model are in this installation."""
    return any(BUNDLED[name].glob("*.safetensors"))


def load(
    name: str = "scenes",
    *,
    device: str = "cpu",
    dtype: str = "auto",
    attention: str = "sdpa",
    revision: str | None = None,
) -> Loaded:
    """Loads a vision-language model with transformers' own classes.

    Args:
        name: "scenes", which comes with the package and needs nothing else; "smol", whose language model is installed
            apart; or a folder, or a hub id.
        device: such as "cpu" or "cuda:0".
        dtype: "auto" (what the weights are in), "float32", "bfloat16" or "float16".
        attention: transformers' `attn_implementation`; modules that have no sdpa take what they have.
        revision: of a hub id.

    A processor that wants torchvision for videos is loaded for pictures alone where that is missing, with a note on
    stderr.

    Raises:
        ValueError: there is no such model or device, it is no vision-language model, or the dtype is unknown.
        FileNotFoundError: the bundled weights are missing from the installation.
    """
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise ValueError(f"unknown dtype {dtype!r}; expected auto, float32, bfloat16 or float16")
    check_device(device)
    source = str(BUNDLED.get(name, name))
    if name in BUNDLED and not ships(name):
        raise FileNotFoundError(
            f"{source} holds no weights; reinstall foveate, or train them: from a checkout, python -m lab train {name}"
        )
    if (Path(source) / LEARNED).is_file():
        model, processor = load_smol(Path(source), attention)
        wanted = torch.float32 if dtype == "auto" else getattr(torch, dtype)
        return Loaded(model.to(device, wanted).eval(), processor, name, revision)
    config = _config(name, source, revision)
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise ValueError(f"{name!r} is a {config.model_type} model, not a vision-language model")
    model, processor = _stock(name, source, revision, dtype, attention, config)
    if pictures_only(processor):
        print(f"note: {name}: {pictures_only_note(processor)}", file=sys.stderr)
    return Loaded(model.to(device).eval(), processor, name, revision)


def without_weights(name: str, revision: str | None = None) -> Loaded:
    """A model without its weights, and its processor: enough to count tokens and costs.

    Of "smol" the whole is loaded, since its processor is put together with its language model.

    Args:
        name: as for `load`.
        revision: of a hub id.

    Raises:
        ValueError: there is no such model, it is no vision-language model, or it has no processor.
    """
    source = str(BUNDLED.get(name, name))
    if (Path(source) / LEARNED).is_file():
        return load(name)
    config = _config(name, source, revision)
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise ValueError(f"{name!r} is a {config.model_type} model, not a vision-language model")
    try:
        processor = load_processor(source, revision, config)
    except Exception as error:  # as in `_stock`
        raise ValueError(
            f"cannot load the processor of {name!r}: {type(error).__name__}: {error}"
        ) from error
    return Loaded(hollow(config), processor, name, revision)


def _stock(
    name: str, source: str, revision: str | None, dtype: str, attention: str, config: Any
) -> tuple[Any, Any]:
    """Model and processor by transformers' own loaders."""
    try:
        return _weights(source, revision, dtype, attention), load_processor(
            source, revision, config
        )
    except (
        Exception
    ) as error:  # damaged files fail in as many ways as there are libraries that read them
        raise ValueError(f"cannot load {name!r}: {type(error).__name__}: {error}") from error


def _weights(source: str, revision: str | None, dtype: str, attention: str) -> Any:
    """The model. Where one of its modules has no sdpa, as Gemma 2's, each takes the best that it has."""
    ask = partial(
        AutoModelForImageTextToText.from_pretrained, source, revision=revision, dtype=dtype
    )
    try:
        return ask(attn_implementation=attention)
    except ValueError as error:
        if attention != "sdpa" or "does not support an attention implementation" not in str(error):
            raise
        return ask()


def check_device(device: str) -> None:
    """Raises ValueError unless this torch has the device, and it is a CPU or a CUDA GPU."""
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise ValueError(f"unknown device {device!r}; expected cpu, cuda or cuda:N") from None
    if wanted.type not in ("cpu", "cuda"):
        raise ValueError(
            f"got device {device!r}; expected cpu, cuda or cuda:N, on which this package is tested"
        )
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"there is no {device!r}: this torch sees {torch.cuda.device_count()} CUDA devices"
        )


def _config(name: str, source: str, revision: str | None) -> Any:
    try:
        return AutoConfig.from_pretrained(source, revision=revision)
    except Exception as error:  # as above
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"cannot load a model from {name!r}: it is neither bundled ({', '.join(BUNDLED)}), nor a folder with a "
            f"config.json, nor a hub id within reach. transformers says: {first}"
        ) from error
