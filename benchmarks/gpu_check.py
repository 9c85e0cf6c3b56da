"""Whether pruning is right on a device: the engine against masking, ragged batches, static and compiled steps, memory.

Models are tiny and their weights random, so this takes seconds where a device is at hand. Each line is printed when it
is known; the exit status is 1 if any is wrong. `--rehearse` runs all of it on the CPU.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from transformers import CLIPVisionConfig, CompileConfig, LlamaConfig, LlavaConfig
from transformers.utils import is_flash_attn_2_available

import foveate
from foveate.doctor.selfcheck import self_check
from foveate.timing.race import build
from foveate.versions import versions

SAVE = Path(__file__).parent.parent / "docs" / "results" / "gpu-check.json"
IMAGE, SIDE, PATCH = 9, 64, 8
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}  # of the largest logit
METHODS = (
    "fastv:layer=1,keep=0.25",
    "divprune:keep=0.25,weigh=nearest,merge=mean",
    "pdrop:keep=0.5",
)
SAID = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}


@dataclass(frozen=True)
class Line:
    """One check: how far apart what must be equal is, as a share of the largest logit, and how far it may be."""

    name: str
    far: float
    most: float

    @property
    def right(self) -> bool:
        return self.far <= self.most


def tiny() -> Any:
    """LLaVA with heads of 64, as flash attention likes them."""
    text = LlamaConfig(
        vocab_size=128, hidden_size=256, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=1024,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE,
        patch_size=PATCH, projection_dim=64,
    )  # fmt: skip
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE, vision_feature_layer=-1,
        image_seq_length=(SIDE // PATCH) ** 2,
    )  # fmt: skip


def prompts(model: Any, words: tuple[int, ...]) -> dict[str, Tensor]:
    """A batch with one picture each, padded on the left."""
    generator = torch.Generator().manual_seed(3)
    count = (SIDE // PATCH) ** 2
    width = max(words) + count
    ids = torch.zeros(len(words), width, dtype=torch.long)
    for row, many in enumerate(words):
        said = torch.randint(16, 120, (many,), generator=generator)
        picture = torch.full((count,), IMAGE)
        ids[row, width - many - count :] = torch.cat(
            [said[: many // 2], picture, said[many // 2 :]]
        )
    pixels = torch.randn(len(words), 3, SIDE, SIDE, generator=generator).to(model.dtype)
    given = {"input_ids": ids, "attention_mask": (ids > 0).long(), "pixel_values": pixels}
    return {name: value.to(model.device) for name, value in given.items()}


def answer(
    model: Any, given: dict[str, Tensor], method: str | None, words: int = 6, **more: Any
) -> Tensor:
    """Logits of an answer (B L V), under a method or plain."""
    with foveate.apply(model, *([] if method is None else [method])):
        out = model.generate(**given, **SAID, max_new_tokens=words, **more)
    return torch.stack(out.logits, 1).float()


def apart(logits: Tensor, truth: Tensor) -> float:
    """The largest difference, as a share of the largest logit, up to where an answer takes another word.

    Words that are equally likely may part answers; then the steps after them say nothing.
    """
    same = logits.argmax(-1).eq(truth.argmax(-1)).all(0).long().cumprod(0).bool()
    steps = torch.cat([same.new_ones(1), same[:-1]])
    return float((logits - truth)[:, steps].abs().max() / truth.abs().max())


def lines(device: str, dtype: str, attention: str, backend: str | None) -> Iterator[Line]:
    """All checks of one kind of model.

    Args:
        device: cuda or cpu.
        dtype: of the weights.
        attention: the backend.
        backend: torch's compiler, or None to leave compiled steps out.
    """
    most = TOLERANCE[dtype]
    kind = f"{dtype}, {attention}"
    model = build(tiny(), device, dtype, attention)
    ragged = prompts(model, (12, 30, 7))
    if attention == "sdpa":
        for check in self_check(model, prompts(model, (12,))):
            yield Line(f"{kind}: {check.name}", 0.0 if check.passed else 1.0, 0.5)
    plain = answer(model, ragged, None)
    for method in METHODS:
        judge = answer(model, ragged, method)
        changed = float((judge - plain)[:, 0].abs().max() / plain.abs().max())
        yield Line(
            f"{kind}: {method} differs from the plain model", 0.0 if changed > 1e-4 else 1.0, 0.5
        )
        for row in range(3):
            real = ragged["attention_mask"][row].bool()
            alone = {name: value[row : row + 1] for name, value in ragged.items()}
            alone |= {name: alone[name][:, real] for name in ("input_ids", "attention_mask")}
            far = apart(answer(model, alone, method), judge[row : row + 1])
            yield Line(f"{kind}: {method}, sample {row} of a ragged batch is as alone", far, most)
        if attention != "sdpa":
            continue
        static: dict[str, Any] = {"cache_implementation": "static"}
        steps = answer(model, ragged, method, disable_compile=True, **static)
        yield Line(f"{kind}: {method}, static is as dynamic", apart(steps, judge), most)
        if backend is not None:
            config = CompileConfig(
                backend=backend, **({} if backend == "inductor" else {"mode": None})
            )
            config._compile_all_devices = True
            made = answer(model, ragged, method, compile_config=config, **static)
            yield Line(f"{kind}: {method}, compiled is as dynamic", apart(made, judge), most)


def memory(device: str) -> Line:
    """That a block leaves no memory behind, in MB."""
    model = build(tiny(), device)
    given = prompts(model, (12,))
    held = []
    for _ in range(3):
        answer(model, given, METHODS[0])
        gc.collect()
        held.append(torch.cuda.memory_allocated() if device == "cuda" else 0)
    return Line("memory that a block leaves behind (MB)", (held[-1] - held[0]) / 2**20, 0.01)


def kinds(device: str) -> list[tuple[str, str, str | None]]:
    """Dtype, attention and compiler of each round; what matters most comes first."""
    if device == "cpu":
        return [("float32", "sdpa", "eager"), ("bfloat16", "sdpa", None)]
    found: list[tuple[str, str, str | None]] = [
        ("float32", "sdpa", None),
        ("bfloat16", "sdpa", "inductor"),
        ("float16", "sdpa", None),
    ]
    if is_flash_attn_2_available():
        found.append(("bfloat16", "flash_attention_2", None))
    return [*found, ("float32", "sdpa", "inductor")]


def run(device: str, save: Path, minutes: float, say: Callable[[str], None] = print) -> int:
    """Runs the checks until the time is up; returns how many were wrong."""
    end = time.monotonic() + 60 * minutes
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    body: dict[str, Any] = {"device": name, "versions": versions(), "lines": []}

    def note(line: Line) -> None:
        mark = "ok   " if line.right else "WRONG"
        say(f"{mark} {line.name}: {line.far:.2g} (at most {line.most:g})")
        body["lines"].append({**asdict(line), "right": line.right})
        save.parent.mkdir(parents=True, exist_ok=True)
        save.write_text(json.dumps(body, indent=1) + "\n")

    note(memory(device))
    for line in (line for kind in kinds(device) for line in lines(device, *kind)):
        note(line)
        if time.monotonic() > end:
            say(f"the {minutes:g} minutes are over; the checks above were run")
            break
    return sum(not one["right"] for one in body["lines"])


def main(
    minutes: Annotated[float, typer.Option(help="It ends by itself after so many.")] = 5.0,
    save: Annotated[Path, typer.Option(help="JSON of the lines.")] = SAVE,
    rehearse: Annotated[bool, typer.Option("--rehearse", help="On the CPU.")] = False,
) -> None:
    """Checks the engine on a CUDA device."""
    if not torch.cuda.is_available() and not rehearse:
        print(
            "there is no CUDA device here, so nothing was checked; --rehearse runs on the CPU",
            file=sys.stderr,
        )
        raise typer.Exit(1)
    wrong = run("cpu" if rehearse else "cuda", save, minutes)
    print(f"{wrong} wrong" if wrong else "all right")
    raise typer.Exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
