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

Look = Callable[[Any, Any, Tensor], Tensor]


@contextmanager
def watched(
    anatomy: Anatomy, score: Score
) -> Iterator[Callable[[Bool[Tensor, "B T"]], Look | None]]:
    """Watches the tower within the block, if `score` looks at it; then tells `View.look` of the forward run there.

    What it gives takes which of the forward's columns are visual, and gives None where there is nothing to look at.
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

    def look(visual: Tensor) -> Look | None:
        sight = watch.sight(embeds[-1], visual, 0, lambda flops: None)
        return None if sight is None else sight.look

    handles = [*watch.attach(), anatomy.decoder.register_forward_pre_hook(catch, with_kwargs=True)]
    try:
        yield look
    finally:
        for handle in handles:
            handle.remove()
