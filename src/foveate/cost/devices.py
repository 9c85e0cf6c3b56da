"""What a device can do: vendors' figures by name, or a short probe of this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

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
        dtypes: those of which `flops` holds.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float | None = None
    launch: float = 5e-6  # PyTorch's eager mode on a present-day host: an assumption, which --device measure replaces
    dtype: str = "bfloat16"
    dtypes: tuple[str, ...] = ("bfloat16", "float16")


# Dense peaks; a figure "with sparsity" is twice as much. Compared in November 2026 with published
# copies of the documents named and with tables that cite them.
DEVICES = {
    # nvidia-a100-datasheet-us-nvidia-1758950-r4: 312 TFLOPS bf16 and fp16, 2,039 GB/s (80 GB SXM;
    # PCIe has 1,935)
    "a100": Device("A100 SXM 80 GB", 312e12, 2.039e12, 80e9),
    # NVIDIA H100 architecture whitepaper (SXM5): 989.4 TFLOPS bf16 and fp16 (1,978.9 with
    # sparsity); 3.35 TB/s
    "h100": Device("H100 SXM", 989.4e12, 3.35e12, 80e9),
    # NVIDIA H200 datasheet (SXM): the same chip, 1,979 TFLOPS with sparsity, with 141 GB at 4.8
    # TB/s
    "h200": Device("H200 SXM", 989.4e12, 4.8e12, 141e9),
    # NVIDIA Ada architecture whitepaper, appendix A: 165.2 TFLOPS bf16, and fp16 summed in fp32;
    # 1,008 GB/s
    "4090": Device("GeForce RTX 4090", 165.2e12, 1.008e12, 24e9),
    # NVIDIA L4 datasheet: 242 TFLOPS bf16 and fp16 with sparsity; 300 GB/s
    "l4": Device("L4", 121e12, 300e9, 24e9),
    # NVIDIA L40S datasheet: 362.05 TFLOPS bf16 and fp16 (733 with sparsity); 864 GB/s
    "l40s": Device("L40S", 362.05e12, 864e9, 48e9),
    # NVIDIA A10 datasheet: 125 TFLOPS bf16 and fp16, 600 GB/s
    "a10": Device("A10", 125e12, 600e9, 24e9),
    # NVIDIA T4 datasheet: 65 TFLOPS fp16, no bf16; 320 GB/s (256 bits of 10 Gbit/s, of which some
    # editions print 300)
    "t4": Device("T4", 65e12, 320e9, 16e9, dtype="float16", dtypes=("float16",)),
}


def device_of(name: str, dtype: str = "auto") -> Device:
    """A known device by name, or "measure": this machine's GPU, or its CPU where there is none.

    Args:
        name: which, in any case.
        dtype: what is measured; "auto" is bfloat16 on a GPU and float32 on a CPU.

    Raises:
        ValueError: there is none of that name, the dtype is unknown, or the device's figures are of
            another.
    """
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise ValueError(f"unknown dtype {dtype!r}; expected auto, float32, bfloat16 or float16")
    if name.lower() == "measure":
        return measured(dtype)
    if name.lower() not in DEVICES:
        raise ValueError(
            f"unknown device {name!r}; expected {', '.join(DEVICES)}, or measure for this machine"
        )
    found = DEVICES[name.lower()]
    if dtype not in ("auto", *found.dtypes):
        raise ValueError(
            f"the figures known of {found.name} are of {' and '.join(found.dtypes)}, not of {dtype}; leave --dtype "
            "out, or measure it there: --device measure"
        )
    return found if dtype == "auto" else replace(found, dtype=dtype)


def measured(dtype: str = "auto") -> Device:
    """Best of a few tries each of a matrix product, a copy and a tiny operation; takes a second or
    two.
    """
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
    rates = 2 * side**3 / product, 2 * words / copy
    return Device(f"{name} (measured, {dtype})", *rates, memory, start, dtype, (dtype,))


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
