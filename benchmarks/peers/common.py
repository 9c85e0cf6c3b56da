"""What the peers' scripts share: the request, a model of random weights, turns, clocks; torch and transformers alone.

A script reads one JSON object (`Asked`) from standard input, and the last line that it prints is one JSON object. It
need not import foveate: a peer's environment may hold another transformers, and ratios are taken within one alone.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.generation.streamers import BaseStreamer


@dataclass(frozen=True)
class Asked:
    """A batch of prompts with one picture each, of whose tokens `keep` shall be left, from `layer` on where it can."""

    config: dict[str, Any]
    text: int
    visual: int
    keep: float
    layer: int
    new_tokens: int
    batch: int
    repeats: int
    threads: int
    device: str
    dtype: str
    seed: int = 0

    @property
    def kept(self) -> int:
        """Visual tokens that shall be left."""
        return int(self.visual * self.keep + 0.5)


class Watch(BaseStreamer):
    """Notes when tokens arrive; on a GPU it waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.times = device, []
        self.begin = self._now()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def put(self, value: Tensor) -> None:
        """Called with the prompt, then with every token."""
        self.times.append(self._now())

    def end(self) -> None:
        """Called when generation stops."""


# one generation: its clock, new tokens of the first sample, and entries of each layer's KV cache after the prefill
Done = tuple[Watch, list[int], list[int]]
Runs = Mapping[str, Callable[[], Done]]


def build(asked: Asked, body: dict[str, Any] | None = None) -> Any:
    """A model of random weights under sdpa, whose answers do not end; of `body` in place of the request's shape."""
    torch.manual_seed(asked.seed)
    torch.set_num_threads(asked.threads)
    given = dict(body or asked.config)
    config = AutoConfig.for_model(given.pop("model_type"), **given)
    with torch.device(asked.device):
        kind = getattr(torch, asked.dtype)
        model = AutoModelForImageTextToText.from_config(
            config, dtype=kind, attn_implementation="sdpa"
        )
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def words(asked: Asked, count: int, vocabulary: int) -> Tensor:
    """Random words (batch count), none of them below 16, where shapes have their placeholders."""
    generator = torch.Generator().manual_seed(asked.seed)
    return torch.randint(
        16, min(4096, vocabulary - 1), (asked.batch, count), generator=generator
    ).to(asked.device)


def prompts(asked: Asked, model: Any) -> dict[str, Tensor]:
    """Half of the text, a picture's placeholders, the other half; random pixels. For LLaVA 1.5's kin."""
    config = model.config
    text = words(asked, asked.text, config.text_config.vocab_size)
    image = torch.full((asked.batch, asked.visual), config.image_token_id, device=asked.device)
    half = asked.text // 2
    ids = torch.cat([text[:, :half], image, text[:, half:]], 1)
    side = config.vision_config.image_size
    pixels = torch.randn(
        asked.batch, 3, side, side, generator=torch.Generator().manual_seed(asked.seed)
    )
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels.to(asked.device, model.dtype),
    }


def generation(
    model: Any, given: Mapping[str, Tensor], asked: Asked, attention: str = "sdpa", **more: Any
) -> Done:
    """Greedy, by transformers' own generate, under an attention backend."""
    model.set_attn_implementation(attention)
    watch = Watch(model.device)
    out = model.generate(
        **given,
        max_new_tokens=asked.new_tokens,
        do_sample=False,
        streamer=watch,
        return_dict_in_generate=True,
        **more,
    )
    held = [layer.keys.shape[-2] - (asked.new_tokens - 1) for layer in out.past_key_values.layers]
    return watch, out.sequences[0, given["input_ids"].shape[1] :].tolist(), held


def race(runs: Runs, repeats: int, device: torch.device) -> dict[str, Any]:
    """Each once to warm up, with its memory and what it kept; then turns in rotating order. One that fails says why."""
    found: dict[str, Any] = {}
    base = _held(device)
    for name, run in runs.items():
        _trim(device)
        try:
            _, ids, held = run()
        except Exception as error:  # a peer may fail in any way; the others go on
            found[name] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
            continue
        found[name] = {
            "ids": ids,
            "held": held,
            "peak": _peak(device, base),
            "first": [],
            "further": [],
        }
    order = [name for name in runs if "failed" not in found[name]]
    for turn in range(repeats):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            gc.collect()
            watch = runs[name]()[0]
            times = watch.times[-len(found[name]["ids"]) :]
            found[name]["first"].append(times[0] - watch.begin)
            found[name]["further"].append((times[-1] - times[0]) / max(len(times) - 1, 1))
    return found


def _trim(device: torch.device) -> None:
    """Gives memory back and starts a new peak."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak is now what is held


def _status(field: str) -> int | None:
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
    return None


def _held(device: torch.device) -> int | None:
    _trim(device)
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _status("VmRSS")


def _peak(device: torch.device, base: int | None) -> int | None:
    """Bytes at most held beyond `base`, the model's; None where the system does not tell."""
    most = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")
    return None if most is None or base is None else max(0, most - base)


def serve(contestants: Callable[[Asked], Runs], *packages: str) -> None:
    """A script's whole life: reads the request, runs, prints the result as the last line."""
    asked = Asked(**json.load(sys.stdin))
    with redirect_stdout(sys.stderr), torch.inference_mode():  # peers print too
        found = race(contestants(asked), asked.repeats, torch.device(asked.device))
    told = {name: version(name) for name in ("torch", "transformers", *packages)}
    print(json.dumps({"versions": told, "runs": found}))
