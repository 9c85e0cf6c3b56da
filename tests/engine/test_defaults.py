"""The default dtype and device are the caller's business: methods choose and answer the same under any."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import foveate
from models.tiny import Batch, batch, cache_in, held, model
from oracles.cases import CASES, Case
from oracles.layouts import LAYOUTS
from oracles.speaking import Speaking

SPOKEN = {
    f"{name}, weighed": CASES[name].spoken(Speaking(mean=True)) for name in ("divprune", "st3")
}
EVERY = {**CASES, **SPOKEN}
DEFAULTS = ["bfloat16", "float64", "meta"]


@contextmanager
def default(name: str) -> Iterator[None]:
    """A default dtype; or "meta", a default device whose tensors fail wherever they meet others."""
    if name == "meta":
        with torch.device("meta"):
            yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, name))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class NothingIn(TorchDispatchMode):
    """Fails where an operation gives a dtype that nobody asked for, as `integers + 0.5` does."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.dtype == self.dtype:
                raise RuntimeError(f"{func} gives {self.dtype}")
        return out


@torch.no_grad()
def answer(case: Case, made: Any, data: Batch) -> tuple[torch.Tensor, torch.Tensor, list[Any]]:
    """Logits of a prefill and of a decode step, and what was kept."""
    mask = data.inputs["attention_mask"]
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with foveate.apply(made, case.method) as trace:
        first = made(**data.inputs, position_ids=places, use_cache=True)
        step = made(
            input_ids=data.inputs["input_ids"][:, -1:],
            attention_mask=torch.cat([mask, mask[:, :1] | 1], 1),
            position_ids=places[:, -1:] + 1,
            **held(cache_in(first)),
            use_cache=True,
        )
    return first.logits, step.logits, list(trace)


@pytest.mark.parametrize("method", EVERY)
def test_no_intermediate_result_has_the_default_dtype(method: str) -> None:
    made, data = model("llava"), batch("llava", LAYOUTS["several"])
    with default("bfloat16"), NothingIn(torch.bfloat16):
        answer(EVERY[method], made, data)
    with default("bfloat16"), NothingIn(torch.bfloat16), pytest.raises(RuntimeError):
        torch.arange(3, device="cpu") + 0.5


@pytest.mark.parametrize("name", DEFAULTS)
@pytest.mark.parametrize("method", EVERY)
def test_a_default_dtype_or_device_changes_nothing(method: str, name: str) -> None:
    made, data = model("llava"), batch("llava", LAYOUTS["several"])
    want = answer(EVERY[method], made, data)
    with default(name):
        got = answer(EVERY[method], made, data)
    assert got[2] == want[2]
    torch.testing.assert_close(got[:2], want[:2], atol=2e-4, rtol=1e-3)


SOURCE = Path(foveate.__file__).parent
TYPED = {"zeros", "ones", "empty", "full", "eye", "rand", "randn", "linspace", "tensor"}
PLACED = {*TYPED, "arange", "randint", "randperm", "Generator"}


def unsaid(tree: ast.AST) -> list[tuple[int, str]]:
    """Calls that make a tensor and leave its dtype or device to the caller's defaults."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name, module = node.func.attr, node.func.value
            if isinstance(module, ast.Name) and module.id == "torch" and name in PLACED:
                said = {k.arg for k in node.keywords}
                lacking = {"device"} - said | ({"dtype"} - said if name in TYPED else set())
                found += [(node.lineno, f"torch.{name} without {what}") for what in lacking]
    return found


def test_no_tensor_is_made_without_dtype_and_device() -> None:
    assert unsaid(ast.parse("torch.zeros(3, device=d)\ntorch.arange(3)")) == [
        (1, "torch.zeros without dtype"),
        (2, "torch.arange without device"),
    ]
    rooms = (
        "core",
        "methods",
        "engine",
        "tune",
        "artefacts",
        "eval",
        "inspect",
        "doctor",
        "timing",
    )
    found = [
        f"{path.relative_to(SOURCE)}:{line}: {what}"
        for room in rooms
        for path in sorted((SOURCE / room).rglob("*.py"))
        for line, what in unsaid(ast.parse(path.read_text()))
    ]
    assert not found, "\n".join(found)
