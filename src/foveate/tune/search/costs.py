"""What a schedule costs, as a share of the unpruned model's.

It comes from token counts, or from measured times of a layer.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core.schedules import mean_keep
from ...core.scores import Even
from ...cost.flops import Cost, Shapes, cost_of_counts, shapes
from ...models.loaded import Loaded
from ..examples import Example, encode
from ..train.dyrate.rollout import batch_of, sizes
from .runner import Runner

CostOf = Callable[[Sequence[float]], float]
COSTS = ("keep", "flops", "kv", "seconds")


@dataclass(frozen=True)
class Sizes:
    """How many samples there are of each size.

    Attributes:
        counts: pairs of a size and the number of samples that have it. A size is (text tokens of
            the prompt, visual tokens, words of the answer).
    """

    counts: tuple[tuple[tuple[int, int, int], int], ...]

    @classmethod
    def of(cls, loaded: Loaded, examples: Sequence[Example], batch: int = 16) -> Sizes:
        """Read off the encoded examples."""
        found: Counter[tuple[int, int, int]] = Counter()
        for start in range(0, len(examples), batch):
            inputs, prompt = encode(loaded, examples[start : start + batch])
            text, visual = sizes(loaded.model, inputs, prompt)
            words = inputs["attention_mask"][:, prompt:].sum(1)
            found.update(zip(text.tolist(), visual.tolist(), words.tolist(), strict=True))
        return cls(tuple(sorted(found.items())))


def whole_cost(shape: Shapes, given: Sizes, keep: Sequence[float]) -> Cost:
    """Of the prefill and the decoding of all samples.

    Tower and head are left out, which no schedule changes.
    """
    out = Cost()
    for (text, visual, words), times in given.counts:
        kept = [int(visual * share + 0.5 + 1e-9) for share in keep]  # as `schedules.number_kept`
        one = cost_of_counts(shape, kept, text=text, new_tokens=words)
        out += Cost(
            prefill=times * one.prefill, decode=times * one.decode, kv_bytes=times * one.kv_bytes
        )
    return out


def ratios(shape: Shapes, given: Sizes, keep: Sequence[float]) -> dict[str, float]:
    """Mean share kept, and FLOPs (prefill, decode, both) and KV bytes over the unpruned model's."""
    ours = whole_cost(shape, given, keep)
    plain = whole_cost(shape, given, [1.0] * len(keep))
    return {
        "keep": mean_keep(keep),
        "flops": (ours.prefill + ours.decode) / (plain.prefill + plain.decode),
        "prefill": ours.prefill / plain.prefill,
        "decode": ours.decode / plain.decode if plain.decode else 1.0,
        "kv": ours.kv_bytes / plain.kv_bytes,
    }


def cost_of(
    kind: str, model: Any, given: Sizes, layer_seconds: Callable[[], list[float]]
) -> CostOf:
    """The cost named `kind`, which never falls when more is kept.

    Raises:
        ValueError: there is no such cost.
    """
    if kind not in COSTS:
        raise ValueError(f"unknown cost {kind!r}; expected one of {', '.join(COSTS)}")
    if kind == "seconds":
        table = layer_seconds()
        return lambda keep: sum(_between(table, share) for share in keep) / (len(keep) * table[-1])
    if kind == "keep":
        return mean_keep
    shape = shapes(model)
    return lambda keep: ratios(shape, given, keep)[kind]


def _between(table: Sequence[float], share: float) -> float:
    """The entry at `share` of the table's length, linear between its entries."""
    place = share * (len(table) - 1)
    low = min(int(place), len(table) - 2)
    return table[low] + (place - low) * (table[low + 1] - table[low])


@torch.no_grad()
def measure_layer(
    runner: Runner, loaded: Loaded, example: Example, points: int = 9, repeats: int = 7
) -> list[float]:
    """Seconds of the middle layer's prefill for one sample, by the share of visual tokens kept.

    The shares are 0, 1 / (points - 1), .. 1. The median of `repeats`, in turn, after one that does
    not count; made never to fall, as noise might have it. Layers are taken to be equally fast; the
    tower, the head, the ranking and the mask are left out.
    """
    batch, _, _ = batch_of(loaded, [example])
    replay = runner.replay
    middle = min(runner.depth // 2, runner.depth - 2)
    at = replay.run(replay.start(batch.prompts, batch.prompt), (), middle)
    times: list[list[float]] = [[] for _ in range(points)]
    for turn in range(repeats + 1):
        for point in range(points):
            method = runner.method(Even(), (*[1.0] * middle, point / (points - 1)))
            with _clocked(replay.layers[middle]) as seconds:
                replay.run(at, [method], middle + 1)
            if turn:  # the first turn warms up
                times[point] += seconds
    medians = [statistics.median(seen) for seen in times]
    return [max(medians[: point + 1]) for point in range(points)]


@contextmanager
def _clocked(layer: Any) -> Iterator[list[float]]:
    """Collects the seconds that a layer runs within the block, without what hooks do before it."""
    seconds: list[float] = []
    begin = 0.0

    def start(_: Any, args: tuple[Tensor, ...]) -> None:
        nonlocal begin
        _wait(args[0])
        begin = time.perf_counter()

    def stop(_: Any, args: tuple[Tensor, ...], output: Any) -> None:
        _wait(output if isinstance(output, Tensor) else output[0])
        seconds.append(time.perf_counter() - begin)

    # Hooks before the layer drop tokens; what it runs first of its own is the norm of its input.
    handles = (
        layer.input_layernorm.register_forward_pre_hook(start),
        layer.register_forward_hook(stop),
    )
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


def _wait(tensor: Tensor) -> None:
    """Waits until what the tensor's device was given to do is done."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
