"""Equal work: the keep at which a method costs as much as another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..core.method import Method
from .cost import Shapes, cost_of_counts, kept_by

Make = Callable[[float], Sequence[Method]]


def flops_ratio_of(shape: Shapes, methods: Sequence[Method], *, text: int, visual: int, new_tokens: int) -> float:
    """FLOPs of prefill and decode over the unpruned model's, for one sample.

    Raises:
        ValueError: a schedule's counts depend on the input.
    """
    layers = len(shape.layers)
    ours = cost_of_counts(shape, kept_by(methods, layers, visual), text=text, new_tokens=new_tokens)
    whole = cost_of_counts(shape, [visual] * layers, text=text, new_tokens=new_tokens)
    return (ours.prefill + ours.decode) / (whole.prefill + whole.decode)


def keep_for(shape: Shapes, make: Make, ratio: float, *, text: int, visual: int, new_tokens: int) -> float:
    """The largest keep, in thousandths, whose FLOPs are at most `ratio` of the unpruned model's.

    Args:
        shape: of the model.
        make: from a keep in [0, 1] to methods; more kept must not cost less.
        ratio: of prefill and decode together.
        text: prompt tokens that are not visual.
        visual: visual tokens.
        new_tokens: tokens generated.

    Raises:
        ValueError: even keeping nothing costs more.
    """

    def cost(thousandths: int) -> float:
        methods = make(thousandths / 1000)
        return flops_ratio_of(shape, methods, text=text, visual=visual, new_tokens=new_tokens)

    if cost(0) > ratio:
        raise ValueError(f"keeping nothing still costs {cost(0):.3f} of the unpruned FLOPs, more than {ratio:.3f}")
    low, high = 0, 1000
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= ratio else (low, middle - 1)
    return low / 1000
