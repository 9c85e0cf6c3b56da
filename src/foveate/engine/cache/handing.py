"""What stays in a cache speaks for what leaves it, where hidden states are gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...core.method import Method
from ...core.tokens import Kind, TokenMap
from ...core.weighing import AtCut, Mean, gathered
from .layer import KeptLayer
from .numbers import Numbers
from .slots import Slots


def handed_on(
    numbers: Numbers | None,
    layer: KeptLayer,
    slots: Slots,
    alive: Bool[Tensor, "B C"],
    tokens: TokenMap,
    method: Method,
    spend: Callable[[float], None],
) -> Numbers | None:
    """A layer's numbers where tokens leave its cache: those that stay speak for them, and become
    their means.

    The tokens are compared by the layer's own keys, rotated, heads side by side; their hidden
    states are gone. Keys and values are averaged where the method's merge is a `Mean`; other merges
    work on hidden states alone.

    Args:
        numbers: of the layer, or None where every token speaks for itself.
        layer: the cache, with the tokens still in it; means are written into it.
        slots: which token lies where.
        alive: which columns stay.
        tokens: what every column is.
        method: that drops them.
        spend: counts FLOPs.

    Returns:
        The numbers from now on.
    """
    speaks = method.weigh is not None or isinstance(method.merge, Mean)
    if not speaks or layer.keys is None or layer.values is None:
        return numbers
    columns = slots.columns(alive.shape[0], alive.device)
    visual = (tokens.kind.gather(1, columns.clamp(min=0)) == int(Kind.IMAGE)) & (columns >= 0)
    place, real = gathered(visual)  # slots of visual tokens (B N)
    # Evictions leave slots in any order; of two kept tokens equally near, the first is the first in
    # the sequence.
    order = columns.gather(1, place).masked_fill(~real, alive.shape[1]).argsort(dim=1)
    place, real = place.gather(1, order), real.gather(1, order)
    columns = columns.gather(1, place)
    stays = alive.gather(1, columns.clamp(min=0))
    keys, values = (_of_slots(part, place) for part in (layer.keys, layer.values))
    old = Numbers.ones(len(alive), alive.shape[1], alive.device) if numbers is None else numbers
    old = old.extended(alive.shape[1])
    at = AtCut.of(
        keys.flatten(2).to(alive.device),
        columns,
        real & stays,
        real & ~stays,
        tokens,
        old.of(columns),
        spend,
    )
    (keys, values), counts = spoken(at, method, (keys, values))
    if isinstance(method.merge, Mean):
        layer.replace(place, keys, values)
    if counts is None or method.weigh is None:
        return numbers
    return old.changed(columns, at.keep, counts, method.weigh.strength)


def spoken(
    at: AtCut, method: Method, parts: Sequence[Float[Tensor, "B N K E"]]
) -> tuple[Sequence[Float[Tensor, "B N K E"]], Float[Tensor, "B N"] | None]:
    """What cached tokens become where some of them leave a layer's cache.

    Args:
        at: the tokens, compared by the layer's keys.
        method: that drops them.
        parts: their keys, values and whatever else is averaged with a `Mean`.

    Returns:
        The parts from now on; what does not stay has what it had. And the numbers of those that
        stay, or None if the method does not weigh.
    """
    mean = method.merge if isinstance(method.merge, Mean) else None
    weigh = method.weigh
    by = weigh if mean is None else mean.by
    if by is None:
        return parts, None
    owner = by.owners(at)
    if mean is not None:
        parts = [
            torch.where(
                at.keep[..., None, None].to(part.device),
                at.means(part.flatten(2).to(at.keep.device), owner, mean.cutoff)
                .view(part.shape)
                .to(part),
                part,
            )
            for part in parts
        ]
    if weigh is None:
        return parts, None
    return parts, weigh.numbers(at, owner if weigh == by else weigh.owners(at))


def _of_slots(values: Float[Tensor, "B K S E"], place: Int[Tensor, "B N"]) -> Tensor:
    """What lies in these slots (B N K E)."""
    at = place.to(values.device)[:, None, :, None]
    index = at.expand(-1, values.shape[1], -1, values.shape[3])
    return values.gather(2, index).transpose(1, 2)
