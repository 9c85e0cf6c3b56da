"""The vision tower, for views that are made outside of `apply`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from ..core.contract import Score
from ..engine.anatomy import Anatomy
from ..engine.tower.form import known_tower
from ..engine.tower.watch import Watch

TowerReader = Callable[[Any, Any, Tensor], Tensor]  # of the kind of `View.look`


@contextmanager
def tower_watched(
    anatomy: Anatomy, score: Score
) -> Iterator[Callable[[Bool[Tensor, "B T"]], TowerReader | None]]:
    """Hooks the tower within the block, if `score` needs it, and keeps what a forward run there computes.

    The block gets a function. Called after that forward with the visual columns (B T), it returns
    the `View.look` of the forward, or None if `score` needs no tower or no column is visual.
    """
    layers = score.needs.tower
    form = known_tower(anatomy.body) if layers else None
    if form is None:
        yield lambda visual: None
        return
    watch = Watch(form, {form.index(layer) for layer in layers})
    embeds: list[Tensor] = []

    def catch(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        embeds.append(kwargs["inputs_embeds"])

    def reader_of(visual: Tensor) -> TowerReader | None:
        seen = watch.outputs(embeds[-1], visual, 0, lambda flops: None)  # no FLOPs are counted here
        return None if seen is None else seen.look

    handles = [*watch.attach(), anatomy.decoder.register_forward_pre_hook(catch, with_kwargs=True)]
    try:
        yield reader_of
    finally:
        for handle in handles:
            handle.remove()
