"""What a device can do: vendors' figures by name, or a short probe of this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    """A device's limits.

    Attributes:
        name: as printed.
        flops: dense matrix FLOP/s in `dtype`, 2 per multiply-accumulate.
        bandwidth: bytes per second of its memory.
        memory: bytes, or None if not told.
        launch: seconds that starting one operation takes.
        dtype: what weights and keys are in there.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float | None = None
    launch: float = 5e-6  # PyTorch's eager mode on a present-day host: an assumption, which --device measure replaces
    dtype: str = "bfloat16"


DEVICES = {
    # NVIDIA A100 datasheet (June 2021): 312 TFLOPS bf16, 2,039 GB/s (80 GB SXM)
    "a100": Device("A100 SXM 80 GB", 312e12, 2.039e12, 80e9),
    # NVIDIA H100 datasheet: 1,979 TFLOPS bf16 "with sparsity", half of it dense; 3.35 TB/s (SXM)
    "h100": Device("H100 SXM", 989.5e12, 3.35e12, 80e9),
    # NVIDIA H200 datasheet: as H100, with 141 GB at 4.8 TB/s (SXM)
    "h200": Device("H200 SXM", 989.5e12, 4.8e12, 141e9),
    # NVIDIA Ada architecture whitepaper, appendix A: 165.2 dense bf16 TFLOPS with fp32 accumulation, 1,008 GB/s
    "4090": Device("GeForce RTX 4090", 165.2e12, 1.008e12, 24e9),
    # NVIDIA L4 datasheet: 242 TFLOPS bf16 "with sparsity", half of it dense; 300 GB/s
    "l4": Device("L4", 121e12, 300e9, 24e9),
    # NVIDIA L40S datasheet: 733 TFLOPS bf16 "with sparsity", half of it dense (362.05); 864 GB/s
    "l40s": Device("L40S", 362.05e12, 864e9, 48e9),
    # NVIDIA A10 datasheet: 125 TFLOPS bf16, 600 GB/s
    "a10": Device("A10", 125e12, 600e9, 24e9),
    # NVIDIA T4 datasheet: 65 TFLOPS fp16, 300 GB/s (no bf16)
    "t4": Device("T4", 65e12, 300e9, 16e9, dtype="float16"),
}


def device_of(name: str, dtype: str = "auto") -> Device:
    """A known device by name, or "measure": this machine's GPU, or its CPU where there is none.

    Args:
        name: which, in any case.
        dtype: what is measured; "auto" is bfloat16 on a GPU and float32 on a CPU.

    Raises:
        ValueError: there is none of that name, or the dtype is unknown.
    """
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise ValueError(f"unknown dtype {dtype!r}; expected auto, float32, bfloat16 or float16")
    if name.lower() == "measure":
        return measured(dtype)
    if name.lower() not in DEVICES:
        raise ValueError(f"unknown device {name!r}; expected {', '.join(DEVICES)}, or measure for this machine")
    return DEVICES[name.lower()]


def measured(dtype: str = "auto") -> Device:
    """Best of a few tries each of a matrix product, a copy and a tiny operation; takes a second or two."""
    cuda = torch.cuda.is_available()
    where = torch.device("cuda" if cuda else "cpu")
    dtype = ("bfloat16" if cuda else "float32") if dtype == "auto" else dtype
    kind = getattr(torch, dtype)
    side, words = (8192, 2**30) if cuda else (1536, 2**26)
    a = torch.randn(side, side, device=where, dtype=kind)
    product = _best(lambda: a @ a, where)
    big = torch.empty(words, dtype=torch.uint8, device=where)
    other = torch.empty_like(big)
    copy = _best(lambda: other.copy_(big), where)
    small = torch.zeros(8, device=where)
    start = _best(lambda: [small.add_(1) for _ in range(200)], where) / 200
    name = torch.cuda.get_device_name() if cuda else f"this CPU, {torch.get_num_threads()} threads"
    memory = float(torch.cuda.get_device_properties(where).total_memory) if cuda else None
    return Device(f"{name} (measured, {dtype})", 2 * side**3 / product, 2 * words / copy, memory, start, dtype)


def _best(run: Callable[[], object], where: torch.device, tries: int = 5) -> float:
    """Least seconds of a few runs after one to warm up."""
    times = []
    for _ in range(tries + 1):
        if where.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        if where.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return min(times[1:])
