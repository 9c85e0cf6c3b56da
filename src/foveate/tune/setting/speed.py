"""Measured speed of settings on the model itself, end to end, and the most that any could gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle, islice

from ...core.method import Method
from ...cost.architecture import architecture_of
from ...cost.devices import device_of
from ...cost.plan import Request
from ...cost.roofline import caps
from ...eval.records import Record
from ...eval.tasks import Sample
from ...models.loaded import Loaded
from ...timing.clock import Timed, generate_timed
from ...timing.race import faster, in_turn

REPEATS = 5


def times_faster(
    loaded: Loaded,
    samples: Sequence[Sample],
    settings: Mapping[str, Sequence[Method]],
    new_tokens: int,
    batch: int,
    repeats: int = REPEATS,
) -> dict[str, float]:
    """How many times faster each setting answers than the plain model: medians of ratios, in turn.

    Args:
        loaded: the model.
        samples: prompts; the first `batch` of them run, over again if there are fewer.
        settings: methods by name.
        new_tokens: of every answer; none ends early.
        batch: prompts at once.
        repeats: timed turns, after one that warms up.
    """
    some = list(islice(cycle(samples), batch))
    inputs = loaded.encode(
        [(sample.images(), sample.prompt) for sample in some],
        earlier=[sample.earlier for sample in some],
    )
    lineup: dict[str, Sequence[Method] | None] = {"": None, **settings}
    runs = {
        name: partial(generate_timed, loaded.model, inputs, methods, new_tokens, least=new_tokens)
        for name, methods in lineup.items()
    }
    times = {
        name: [_total(timed, new_tokens) for timed in done]
        for name, done in in_turn(runs, repeats).items()
    }
    return {name: faster(times[""], times[name]) for name in settings}


def _total(timed: Timed, new_tokens: int) -> float:
    return timed.first + (timed.further * (new_tokens - 1) if new_tokens > 1 else 0.0)


def most(loaded: Loaded, plain: Sequence[Record], new_tokens: int, batch: int) -> float:
    """Times faster that no setting can pass here: as if all visual tokens left and ranking were free.

    The vision tower's time is left out, which would only lower it.
    """
    model = architecture_of(loaded.model)
    text, visual = (
        round(sum(getattr(row, key) for row in plain) / len(plain)) for key in ("text", "visual")
    )
    asked = Request(max(text, 1), visual, new_tokens, batch)
    where = device_of("measure", str(loaded.model.dtype).removeprefix("torch."))
    return caps(model, where, asked, [0] * len(model.shapes.layers)).total
