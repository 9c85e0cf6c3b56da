"""A token leaves while its request decodes: the others move together in the request's own blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from ..core.method import Method
from ..core.tokens import Kind
from ..core.weighing import AtCut, Mean
from ..engine.cache.handing import spoken
from ..engine.cache.numbers import Numbers
from .anatomy import Anatomy
from .bias import WideHeads
from .lookback import all_key_heads
from .paged import Paged, Pair
from .rows import Request, Share


class Evict:
    """Takes tokens of a request out of a layer's cache, before the layer adds the token being decoded.

    Args:
        paged: reads and writes caches.
        anatomy: of the model.
        wide: of each layer, where keys carry biases, or None.
    """

    def __init__(self, paged: Paged, anatomy: Anatomy, wide: Sequence[WideHeads] | None) -> None:
        self.paged = paged
        self.anatomy = anatomy
        self.wide = wide

    def __call__(
        self,
        method: Method,
        share: Share,
        layer: int,
        gone: Int[Tensor, n],
        slots: Callable[[Tensor], Tensor],
    ) -> None:
        """Takes the columns `gone` out of one layer, as far as it holds them.

        Args:
            method: that drops them.
            share: the request's part of this step.
            layer: the layer.
            gone: columns of its prompt.
            slots: gives the slots of places in the request's blocks.
        """
        request = share.request
        held = request.held(layer, share.length - 1)
        stays = ~torch.isin(held, gone)
        if bool(stays.all()):
            return
        places = torch.arange(len(held), device=held.device)
        keys, values = self.paged.read(layer, slots(places))
        speaks = method.weigh is not None or isinstance(method.merge, Mean)
        if speaks:
            keys, values = self._handed_on(method, request, layer, held, stays, (keys, values))
        first = 0 if speaks else int((~stays).long().argmax())  # what comes before it need not move
        moved = places[stays][first:]
        self.paged.write(
            layer, slots(places[first : first + len(moved)]), keys[moved], values[moved]
        )
        request.kept[layer] = request.kept[layer][stays[: len(request.kept[layer])]]
        request.gone[layer] += int((~stays).sum())

    def _handed_on(
        self,
        method: Method,
        request: Request,
        layer: int,
        held: Tensor,
        stays: Tensor,
        cached: Pair,
    ) -> Pair:
        """Keys and values where what stays speaks for what leaves, as in the other engine's cache."""
        if request.tokens is None:
            return cached
        narrow = self.anatomy.head_size(layer)
        prompt = held < request.prompt
        visual = torch.zeros_like(prompt)
        visual[prompt] = request.tokens.kind[0][held[prompt]] == int(Kind.IMAGE)
        place = visual.nonzero()[:, 0]
        columns = held[place][None]
        keys, values = (part[place][None, ..., :narrow] for part in cached)
        alike = all_key_heads(keys[0], self.anatomy.key_heads(layer)).flatten(1)[None]
        old = request.numbers[layer] or Numbers.ones(1, request.prompt, held.device)
        keep = stays[place][None]
        at = AtCut.of(
            alike, columns, keep, ~keep, request.tokens, old.of(columns), lambda flops: None
        )
        (keys, values), counts = spoken(at, method, (keys, values))
        if counts is not None and method.weigh is not None:
            request.numbers[layer] = old.changed(columns, keep, counts, method.weigh.strength)
        whole = tuple(part.clone() for part in cached)
        whole[1][place, ..., :narrow] = values[0]
        numbers = request.numbers[layer]
        if self.wide is None or numbers is None:
            whole[0][place, ..., :narrow] = keys[0]
        else:
            whole[0][place] = self.wide[layer].keys(keys[0], numbers.biases(columns)[0])
        return whole[0], whole[1]
