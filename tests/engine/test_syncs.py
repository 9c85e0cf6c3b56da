"""How often the host waits for the device: in a prefill that decides, and in a decode step."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

import foveate
from models.tiny import batch, cache_in, held, model
from oracles.cases import CASES
from oracles.layouts import LAYOUTS

SOURCE = str(Path(foveate.__file__).parent)
WAITING = {
    torch.Tensor.__bool__, torch.Tensor.__int__, torch.Tensor.__float__, torch.Tensor.__index__, torch.Tensor.item,
    torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.nonzero, torch.nonzero, torch.unique,
    torch.Tensor.unique, torch.equal, torch.Tensor.equal,
}  # fmt: skip
INDEXING = {torch.Tensor.__getitem__, torch.Tensor.__setitem__}


class Waits(TorchFunctionMode):
    """Counts, by place in our source, what makes the host wait for numbers of a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = func in WAITING or (func in INDEXING and _by_mask(args[1]))
        if waits:
            frame = sys._getframe(1)
            while frame.f_back is not None and "/torch/" in frame.f_code.co_filename:
                frame = frame.f_back
            if frame.f_code.co_filename.startswith(SOURCE):
                place = Path(frame.f_code.co_filename).relative_to(SOURCE)
                self.found[f"{place}:{frame.f_lineno}"] += 1
        return func(*args, **(kwargs or {}))


def _by_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in parts)


@torch.no_grad()
def counted(name: str | None, layout: str) -> tuple[Counter[str], list[Counter[str]]]:
    """The waits of a prefill, and of each of three decode steps."""
    made, data = model("llava"), batch("llava", LAYOUTS[layout])
    methods = [] if name is None else [CASES[name].method]
    mask = data.inputs["attention_mask"]
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with foveate.apply(made, *methods):
        with Waits() as prefill:
            out = made(**data.inputs, position_ids=places, use_cache=True)
        steps = []
        for _ in range(3):
            mask = torch.cat([mask, mask[:, :1] | 1], 1)
            places = places[:, -1:] + 1
            ids = torch.full((len(mask), 1), 7)
            with Waits() as step:
                out = made(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=places,
                    **held(cache_in(out)),
                    use_cache=True,
                )
            steps.append(step.found)
    return prefill.found, steps


@pytest.mark.parametrize(
    ("name", "prefill", "step"),
    [
        (None, 2, 1),
        ("vtw", 5, 1),
        ("random", 5, 1),
        ("fastv", 6, 1),
        ("dart", 6, 1),
        ("dyrate", 6, 5),
        ("decay", 6, 5),
        ("schedule", 10, 1),
        ("pdrop", 14, 1),
    ],
)
def test_the_host_waits_a_handful_of_times(name: str | None, prefill: int, step: int) -> None:
    """At most so often in a prefill with its decisions, and in a decode step.

    On a GPU each is a stop of tens of microseconds. The one of every step reads the padding mask.
    """
    first, steps = counted(name, "left")
    assert 2 <= sum(first.values()) <= prefill, first  # 2: or the counter would see nothing
    assert sum(steps[0].values()) <= step + 1, steps[0]  # whether an image goes on there
    for later in steps[1:]:
        assert sum(later.values()) <= step, later
