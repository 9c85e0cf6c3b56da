"""What a user asks of a tuning, and what is told of it in one sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from . import losses as judging
from .certificate import Promise

COSTS = {"flops": "flops", "kv": "bytes", "seconds": "flops"}  # what settings are tuned to


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    Attributes:
        risk: the largest mean loss to accept; None asks for a speed.
        speed: times faster, end to end; None asks for a loss.
        loss: one of `losses.LOSSES`.
        confidence: of the certificate.
        cost: what is to be least: flops, kv (bytes) or seconds, measured on this device.
        new_tokens: length of answers, for seconds.
        batch: prompts at once, for seconds.
        search: whether counts by layer are searched too.
        guard: whether inputs unlike the examples are to run unpruned.
        seed: of the division of the data, and of the search.
        size: examples that run together.

    Raises:
        ValueError: a number out of range, or neither or both of risk and speed.
    """

    risk: float | None = None
    speed: float | None = None
    loss: str = "answers"
    confidence: float = 0.95
    cost: str = "flops"
    new_tokens: int = 64
    batch: int = 1
    search: bool = True
    guard: bool = False
    seed: int = 0
    size: int = 16

    def __post_init__(self) -> None:
        if (self.risk is None) == (self.speed is None):
            raise ValueError(
                "got both a loss and a speed, or neither; expected one of --loss and --speed"
            )
        if self.loss not in judging.LOSSES:
            raise ValueError(f"loss of {self.loss!r}; expected one of {', '.join(judging.LOSSES)}")
        if self.cost not in COSTS:
            raise ValueError(f"cost in {self.cost!r}; expected one of {', '.join(COSTS)}")
        if self.speed is not None and not (math.isfinite(self.speed) and self.speed > 1):
            raise ValueError(f"speed {self.speed:g}x; expected more than 1x")
        Promise(0.5 if self.risk is None else self.risk, self.confidence)

    @property
    def kind(self) -> judging.Loss:
        """The loss."""
        return judging.LOSSES[self.loss]


def sentence(wish: Wish, found: dict[str, Any]) -> str:
    """The certificate, or what it lacks, in one sentence."""
    risk = found["risk"]
    level = f"{100 * wish.confidence:g} %"
    if found["holds"]:
        seen = found["tested"]
        said = wish.kind.sentence.format(share=percent(risk))
        return (
            f"With {level} confidence, on data like these, {said} "
            f"({percent(seen['loss'])} on {seen['pictures']} pictures that nothing was chosen on)."
        )
    many = found["enough"]
    if found["estimated"] is None:
        more = "" if many is None else f" About {many} pictures to certify on might do."
        return (
            f"Nothing cheaper than the unpruned model could be certified: {level} confidence that "
            f"{wish.kind.sentence.format(share=percent(risk))}.{more}"
        )
    return (
        f"NOT certified: {found['pictures']} pictures are too few for {level} confidence that "
        f"{wish.kind.sentence.format(share=percent(risk))}"
        + ("." if many is None else f"; about {many} to certify on would do.")
    )


def percent(share: float) -> str:
    """A share as text."""
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"
