"""What adapting is worth: two controls for a predictor.

One takes the same rate for all prompts, the other the best rate of each in hindsight.

Shapes: E answers, K rates, G groups of answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ....models.loaded import Loaded
from ...examples import Example
from .plan import Plan
from .table import Table, tabulate


@dataclass(frozen=True)
class Beside:
    """Two controls at a predictor's FLOPs.

    Attributes:
        fixed_loss: of one rate for all.
        hindsight_loss: of the best rate of each, chosen with the answers known. It is a bound, not
            an aim.
    """

    fixed_loss: float
    hindsight_loss: float


@dataclass(frozen=True)
class Point:
    """A mean loss and what it took.

    Attributes:
        loss: cross-entropy of an answer, nats.
        ratio: FLOPs over the unpruned model's.
    """

    loss: float
    ratio: float


def of_choice(table: Table, chosen: Int[Tensor, "E"]) -> Point:  # noqa: UP037
    """One rate of each answer."""
    loss = table.loss.gather(1, chosen[:, None]).double()  # (E 1): each answer at its rate
    spent = table.flops.gather(1, chosen[:, None]).double()
    return Point(float(loss.mean()), float(spent.sum() / table.full.double().sum()))


def one_rate(table: Table, ratio: float) -> Float[Tensor, "K"]:  # noqa: UP037
    """Chances of each rate, where all prompts draw alike.

    Only the two rates have a chance whose costs enclose `ratio` of the FLOPs.

    Raises:
        ValueError: no rate of the table costs as little.
    """
    spent = table.flops.double().sum(0) / table.full.double().sum()  # (K), falling
    if ratio < spent[-1] - 1e-6:
        raise ValueError(
            f"no rate costs {ratio:.3f} of the FLOPs; the highest costs {float(spent[-1]):.3f}"
        )
    if ratio <= spent[0]:
        upper = int((spent >= ratio).sum()) - 1  # the last rate that costs `ratio` or more
        upper = min(upper, len(spent) - 2)
    else:
        upper = 0
    lower = upper + 1
    part = ((ratio - spent[lower]) / (spent[upper] - spent[lower])).clamp(0, 1)
    chances = torch.zeros_like(spent)
    chances[upper] = part
    chances[lower] = 1 - part
    return chances


def fixed(table: Table, ratio: float) -> Point:
    """What `one_rate` comes to."""
    chances = one_rate(table, ratio)
    loss = table.loss.double().sum(0) @ chances
    spent = table.flops.double().sum(0) @ chances
    return Point(float(loss) / len(table.loss), float(spent / table.full.double().sum()))


def hindsight(
    table: Table,
    ratio: float,
    group: Int[Tensor, E] | None = None,
) -> Int[Tensor, "E"]:  # noqa: UP037
    """The rate of each answer that together lose least, at no more than `ratio` of the FLOPs.

    By a price on FLOPs (Everett 1963): exact for the FLOPs that it comes to. It has seen the
    answers, so no predictor can be better on them, and none should be expected to be as good.

    Args:
        table: of answers.
        ratio: FLOPs over unpruned.
        group: answers of one number (from 0 on) get one rate; without it, each has its own.
    """
    group = torch.arange(len(table.loss), device="cpu") if group is None else group
    members = F.one_hot(group).double().T  # (G E): members[g, e] = 1 if answer e is of group g
    loss = members @ table.loss.double()  # (G K), sums over the group
    spent = members @ table.flops.double() / table.full.double().sum()
    # Each group takes the rate of the least loss + 2^price x FLOPs. The price is bisected: a higher
    # one spends less. `best` is what the lowest price within the ratio has chosen so far.
    low = -40.0
    high = 40.0
    best = spent.argmin(1)
    for _ in range(100):
        price = (low + high) / 2
        chosen = (loss / len(group) + 2.0**price * spent).argmin(1)
        if float(spent.gather(1, chosen[:, None]).sum()) <= ratio:
            best = chosen
            high = price
        else:
            low = price
    return best[group]


def compare(
    loaded: Loaded,
    examples: Sequence[Example],
    plan: Plan,
    ratio: float,
    path: Path | None = None,
    source: str = "",
) -> Beside:
    """The controls on some examples, with a table of their own.

    Their FLOPs are `ratio`, or the least that the rates can cost, if that is more.

    Args:
        loaded, examples, plan, path, source: as of `table.tabulate`.
        ratio: the predictor's FLOPs over unpruned.
    """
    table = tabulate(loaded, examples, plan, path, source)
    highest_rate = torch.full((len(examples),), len(plan.rates) - 1, dtype=torch.long, device="cpu")
    ratio = max(ratio, of_choice(table, highest_rate).ratio)
    fixed_loss = fixed(table, ratio).loss
    hindsight_loss = of_choice(table, hindsight(table, ratio)).loss
    return Beside(fixed_loss, hindsight_loss)
