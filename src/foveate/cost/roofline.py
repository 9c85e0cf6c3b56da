"""How fast a request can be at best: a roofline of compute and bytes, and the time that launches
take.

A phase takes the longer of its FLOPs over the device's and its bytes over the memory's, layer by
layer: weights are read once per forward, keys and values once per decode step; activations are not
counted. Launches are kept apart, for CUDA graphs can hide them: caps are without them, so that no
implementation of any method lies above its cap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .architecture import Architecture
from .devices import Device
from .plan import Request

# operations that transformers 5.23 dispatches per layer of an eager Llama (counted), and about what
# CLIP's takes
_PER_LAYER, _PER_TOWER_LAYER = 36, 16


@dataclass(frozen=True)
class Phase:
    """Seconds of one phase: what compute alone would take, bytes alone, the roofline of both, and
    launches.
    """

    compute: float
    bytes: float
    best: float
    launches: float

    @property
    def bound(self) -> str:
        """What holds it back most, launches included."""
        sizes = {"compute": self.compute, "bytes": self.bytes, "launches": self.launches}
        return max(sizes, key=lambda name: sizes[name])


@dataclass(frozen=True)
class Times:
    """The phases of a request, and `total`: tower, prefill and all decode steps (best)."""

    tower: Phase
    prefill: Phase
    decode: Phase  # one step, at the answer's mean length
    steps: int

    @property
    def total(self) -> float:
        """Seconds from picture to last token."""
        return self.tower.best + self.prefill.best + self.steps * self.decode.best


def times(model: Architecture, device: Device, asked: Request, kept: Sequence[float]) -> Times:
    """The least time that a batch can take whose layer l sees `kept[l]` visual tokens.

    Args:
        model: its sizes; weights are in as many bytes as keys.
        device: where.
        asked: what runs.
        kept: visual tokens per layer.
    """
    layers = model.shapes.layers
    steps = asked.new_tokens - 1
    batch = asked.batch
    seen = [asked.text + k for k in kept]
    middle = (
        steps + 1
    ) / 2  # mean of 1..steps: what a step attends to besides the prompt, itself included
    prefill = [
        (batch * layer.flops(n), layer.read(batch * n) + batch * layer.cache(n))
        for layer, n in zip(layers, seen, strict=True)
    ]
    decode = [
        (
            batch * layer.flops(1, n + middle - 1),
            layer.read(batch) + batch * layer.cache(n + middle),
        )
        for layer, n in zip(layers, seen, strict=True)
    ]
    head = (2.0 * batch * model.shapes.head, model.shapes.head)
    rows = model.shapes.head_rows(asked.text, asked.visual)
    return Times(
        _tower(model, device, asked),
        _phase(
            device,
            [*prefill, (rows * head[0], head[1])],
            model.shapes.bytes,
            _PER_LAYER * len(layers),
        ),
        _phase(device, [*decode, head], model.shapes.bytes, _PER_LAYER * len(layers)),
        steps,
    )


def _phase(device: Device, parts: Sequence[tuple[float, float]], size: int, launches: int) -> Phase:
    """Of (FLOPs, numbers read) of every part, each of `size` bytes."""
    both = [(flops / device.flops, numbers * size / device.bandwidth) for flops, numbers in parts]
    return Phase(
        sum(c for c, _ in both),
        sum(b for _, b in both),
        sum(max(pair) for pair in both),
        launches * device.launch,
    )


def _tower(model: Architecture, device: Device, asked: Request) -> Phase:
    if not asked.pictures:
        return Phase(0.0, 0.0, 0.0, 0.0)
    flops = asked.batch * model.vision_flops(asked.pictures)
    launches = _PER_TOWER_LAYER * len(model.tower.layers)
    return _phase(device, [(flops, model.vision)], model.shapes.bytes, launches)


@dataclass(frozen=True)
class Caps:
    """Times faster than unpruned, at best: the prefill, one decode step, and everything, tower
    included.
    """

    prefill: float
    decode: float
    total: float


def caps(model: Architecture, device: Device, asked: Request, kept: Sequence[float]) -> Caps:
    """How much faster a batch can be whose layers see `kept` visual tokens; ranking them is taken
    to be free.
    """
    base = times(model, device, asked, [asked.visual] * len(kept))
    ours = times(model, device, asked, kept)
    return Caps(
        base.prefill.best / ours.prefill.best,
        base.decode.best / ours.decode.best,
        base.total / ours.total,
    )


def least_keep(
    model: Architecture, device: Device, asked: Request, part: str = "total", near: float = 0.02
) -> int:
    """The fewest visual tokens worth aiming at: with fewer, `part` gets less than `near` faster.

    Args:
        model: its sizes.
        device: where.
        asked: what runs.
        part: "prefill" or "total".
        near: a share of the time that keeping none would take.
    """
    depth = len(model.shapes.layers)

    def seconds(count: int) -> float:
        found = times(model, device, asked, [count] * depth)
        return found.total if part == "total" else found.prefill.best

    low = 0
    high = asked.visual
    enough = (1 + near) * seconds(0)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if seconds(middle) <= enough else (low, middle - 1)
    return low


def held(model: Architecture, asked: Request, kept: Sequence[float]) -> float:
    """Bytes of weights and of the KV cache at the end."""
    weights = model.weights + model.words + model.vision
    ends = [asked.text + k + asked.new_tokens - 1 for k in kept]
    kv = sum(layer.cache(n) for layer, n in zip(model.shapes.layers, ends, strict=True))
    return float((weights + asked.batch * kv) * model.shapes.bytes)


def read_by(model: Architecture, asked: Request, kept: Sequence[float], step: bool) -> float:
    """Numbers that a batch reads: weights, head and cache, in its last decode step (`step`) or in
    the prefill.
    """
    more = asked.new_tokens - 1 if step else 0
    read = float(model.shapes.head)
    for layer, k in zip(model.shapes.layers, kept, strict=True):
        seen = asked.text + k
        read += layer.read(asked.batch * (1 if step else seen)) + asked.batch * layer.cache(
            seen + more
        )
    return read


def hard_cap(flops: tuple[float, float], whole: float, ours: float) -> float:
    """The most that any device can gain: the larger of the ratio of FLOPs (unpruned, pruned) and
    that of bytes.

    Unpruned layers are alike, so all are held back by compute or all by bytes; pruned, a phase
    takes at least as long as that one alone would. What both runs share (tower, head) only lowers
    the gain.
    """
    return max(flops[0] / flops[1], whole / ours)
