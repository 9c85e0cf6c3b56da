"""Equal work: turns a method's knob until it costs, on average over samples, what is asked."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

from ..core.method import Method
from ..cost.flops import Cost, Shapes, UnforeseenError, cost_of_counts, kept_by
from ..methods import factories, knobs, parse
from ..methods.spec import MARK, SPEAKING, Named, filled, named_in, read
from .records import Record

WORKS = ("flops", "bytes", "tokens")
Work = Callable[[Sequence[Method]], float]


@dataclass(frozen=True)
class Target:
    """What is to be equal: `work` over the unpruned model's.

    Attributes:
        work: "flops" of prefill and decode, "bytes" of the KV cache at the end, or "tokens": visual tokens that a
            layer of the prefill sees, on average.
        ratio: wanted.
    """

    work: str
    ratio: float


def read_target(text: str) -> Target:
    """From text like ``flops=0.33``.

    Raises:
        ValueError: it is not of this form.
    """
    work, _, number = text.partition("=")
    ratio = float("nan")
    with suppress(ValueError):
        ratio = float(number)
    if work not in WORKS or not 0 < ratio <= 1:
        raise ValueError(
            f"match {text!r}; expected {' or '.join(f'{w}=0.33' for w in WORKS)}, a ratio in (0, 1]"
        )
    return Target(work, ratio)


def marked(spec: str) -> str:
    """The spec with ``?`` at the knob to be tuned: where it is already, or at `keep`, or at the only number.

    Raises:
        ValueError: unknown method, several marks, or no knob that can be told.
    """
    parts = read(spec)
    marks = [
        f"{named.name}:{key}"
        for named in named_in(parts)
        for key, value in named.knobs
        if value == MARK
    ]
    if len(marks) > 1:
        raise ValueError(
            f"{spec!r} marks several knobs, {' and '.join(marks)}; one can be tuned, give the others values"
        )
    if marks:
        return spec
    first = parts[0]
    if len(parts) > 1 or not isinstance(first, Named):
        raise ValueError(
            f"{spec!r} joins methods or their parts; mark the knob to be tuned with ?, as in fastv:keep=?+vtw:layer=20 "
            "or score=mix,schedule=pdrop:keep=?"
        )
    if first.name not in factories():
        parse(first.name)  # says what was meant
    own = (knob for knob in knobs(first.name) if knob not in SPEAKING)
    numbers = [knob for knob in own if _kinds(first.name, knob)]
    chosen = "keep" if "keep" in numbers else numbers[0] if len(numbers) == 1 else None
    if chosen is None:
        raise ValueError(
            f"which knob of {first.name} is to be tuned? Mark it with ?, as in "
            f"{first.name}:{(numbers or ['knob'])[0]}=?; its numbers are {', '.join(numbers) or 'none'}"
        )
    rest = first.without(chosen, "rate")
    return str(Named(rest.name, (*rest.knobs, (chosen, MARK))))


def _kinds(name: str, knob: str) -> set[type]:
    hint = knobs(name)[knob][0]
    return {int, float} & set(get_args(hint) or (hint,))


def values(spec: str, layers: int) -> list[str]:
    """What the marked knob may be, ascending: thousandths of [0, 1], or, of whole numbers, 0 to `layers`.

    Raises:
        ValueError: unknown method or knob, or a knob that is no number.
    """
    found = next((named for named in named_in(read(spec)) if named.marked() is not None), None)
    if found is None:
        raise ValueError(f"{spec!r} marks no knob; expected one with ?, as in fastv:keep=?")
    knob = found.marked() or MARK
    if knob in SPEAKING:
        raise ValueError(
            f"{str(found)!r}: {knob} changes how tokens count, not how many there are, so no work depends on it; mark "
            "a knob such as keep"
        )
    if found.name not in factories() or knob not in knobs(found.name):
        parse(filled(str(found), "1"))  # says what was meant
    kinds = _kinds(found.name, knob) if knob in knobs(found.name) else set()
    if not kinds:
        raise ValueError(f"{str(found)!r}: {knob} is no number that could be tuned")
    return (
        [f"{n / 1000:.3f}" for n in range(1001)]
        if float in kinds
        else [str(n) for n in range(layers + 1)]
    )


def tune(spec: str, target: Target, work: Work, layers: int) -> tuple[str, float]:
    """The spec with the value whose work is the largest that is at most the target's, and that work.

    Args:
        spec: with a mark, from `marked`.
        target: wanted.
        work: of methods, over the unpruned model's; must rise or fall all along the knob.
        layers: depth of the decoder.

    Raises:
        ValueError: no value costs so little, or the spec is wrong.
    """
    grid = _accepted(spec, values(spec, layers), layers)

    @cache
    def cost(i: int) -> float:
        return work(parse(filled(spec, grid[i])))

    low = 0
    high = len(grid) - 1
    if cost(low) > cost(high):  # a knob that removes: look at it from its other end
        low, high = high, low
    if cost(low) > target.ratio:
        raise ValueError(
            f"{spec.replace('?', grid[low])} still costs {cost(low):.3f} of the unpruned {target.work}, more than "
            f"{target.ratio:g}; ask for more, or drop earlier"
        )
    while abs(high - low) > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= target.ratio else (low, middle)
    best = high if cost(high) <= target.ratio else low
    return filled(spec, grid[best]), cost(best)


def _accepted(spec: str, grid: Sequence[str], layers: int) -> Sequence[str]:
    """The values that the method accepts, which lie side by side; it may refuse means that no curve has at this depth.

    Raises:
        ValueError: it accepts none.
    """

    @cache
    def refused(i: int) -> ValueError | None:
        try:
            for method in parse(filled(spec, grid[i])):
                method.check(layers)
        except ValueError as error:
            return error
        return None

    finer = (
        i
        for k in range(len(grid).bit_length() + 1)
        for i in range(0, len(grid), max(1, len(grid) >> k))
    )
    some = next((i for i in finer if refused(i) is None), None)
    if some is None:
        raise refused(len(grid) - 1) or ValueError(f"{spec!r} has no value that its method accepts")
    first = bisect_left(range(some), True, key=lambda i: refused(i) is None)
    last = some + bisect_left(range(some, len(grid)), True, key=lambda i: refused(i) is not None)
    return grid[first:last]


def planned(target: Target, shape: Shapes, records: Sequence[Record]) -> Work:
    """Work in closed form, from schedules alone, over the unpruned run's prompts and lengths of answers.

    The function returned raises UnforeseenError for methods whose counts depend on the input or on the step.
    """
    sizes = Counter((r.text, r.visual, r.tokens) for r in records)
    depth = len(shape.layers)

    def one(kept: Sequence[int], text: int, visual: int, tokens: int) -> float:
        if target.work == "tokens":
            return sum(kept) / depth / max(visual, 1)
        return _amount(target, cost_of_counts(shape, kept, text=text, new_tokens=tokens))

    whole = sum(n * one([v] * depth, t, v, a) for (t, v, a), n in sizes.items())

    def work(methods: Sequence[Method]) -> float:
        if any(method.drops(layer, 1) for method in methods for layer in range(depth)):
            raise UnforeseenError("the method also acts at decode steps, which a plan does not see")
        counts = {visual: kept_by(methods, depth, visual) for visual in {v for _, v, _ in sizes}}
        return sum(n * one(counts[v], t, v, a) for (t, v, a), n in sizes.items()) / whole

    return work


def measured(target: Target, records: Sequence[Record]) -> float:
    """Work that was recorded, summed over samples."""
    if target.work == "tokens":
        return sum(sum(r.kept) / len(r.kept) / max(r.visual, 1) for r in records)
    return sum(_amount(target, Cost(**r.cost)) for r in records)


def _amount(target: Target, cost: Cost) -> float:
    return cost.kv_bytes if target.work == "bytes" else cost.prefill + cost.decode


def ran(target: Target, run: Callable[[Sequence[Method]], Sequence[Record]]) -> Work:
    """Work as recorded when methods really run; for those that no plan foresees.

    Args:
        target: wanted.
        run: answers a fixed set of samples with forced lengths.
    """
    whole = measured(target, run([]))

    def work(methods: Sequence[Method]) -> float:
        return measured(target, run(methods)) / whole

    return work


def either(plan: Work, run: Callable[[], Work]) -> Work:
    """The plan where it holds; else what is measured (`run` makes that function, once, when it is first needed)."""
    held: list[Any] = []

    def work(methods: Sequence[Method]) -> float:
        with suppress(UnforeseenError):
            return plan(methods)
        held[:] = held or [run()]
        return float(held[0](methods))

    return work
