"""The way "before": pictures lose their tokens before the decoder, so that the prompt itself is shorter.

A method that chooses a known number of tokens at layer 0, by the picture alone, needs no hooks in
the decoder. The request is shortened where vLLM admits it: fewer placeholders, and a name of the
picture that says by which method. All of vLLM then sees a short prompt: its scheduler, its blocks,
its prefix cache, its graphs. `pictures` does the rest on the workers.

Whether a method is of that kind is tried out at the start, on made-up pictures, and not read off
its name: it must choose the same in a whole prompt as of the picture alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.method import Method
from ..core.tokens import classify
from ..core.view import View
from ..engine.adapters import adapters
from ..engine.attention.rows import replace_rows
from ..engine.cache.numbers import Numbers
from .settings import DEEPEST, drops_while_decoding, methods_of

SEPARATOR = "|foveate|"
Look = Callable[[Any, Any, Tensor], Tensor]


@dataclass(frozen=True)
class Shortening:
    """How a picture was shortened; its name in vLLM's caches says so.

    Attributes:
        total: visual tokens that it started with.
        method: as text.
    """

    total: int
    method: str

    def named(self, name: str) -> str:
        """The picture's name with the cut in it."""
        return f"{name}{SEPARATOR}{self.total}{SEPARATOR}{self.method}"

    @staticmethod
    def of(name: str) -> Shortening | None:
        """The cut that a picture's name tells of; None of a picture that is whole."""
        parts = name.split(SEPARATOR)
        return None if len(parts) != 3 else Shortening(int(parts[1]), parts[2])

    def kept(self, layers: int) -> int:
        """Visual tokens that stay, in a decoder of so many layers."""
        left = self.total
        for method in methods_of(self.method):
            left = min(left, _planned(method, left, layers))
        return left


def _planned(method: Method, total: int, layers: int) -> int:
    """Tokens that a method keeps from layer 0 on.

    Raises:
        ValueError: that is not known beforehand.
    """
    plan = method.schedule.plan(total, layers)
    if plan is None or not isinstance(plan[0], int) or any(count != plan[0] for count in plan):
        raise ValueError(
            f"{method.name} does not say beforehand how many tokens it keeps from layer 0 on"
        )
    return plan[0]


@dataclass(frozen=True, eq=False)
class Choice:
    """What becomes of one picture's tokens.

    Attributes:
        index: which stay, ascending.
        states: of those that stay, merged where the method merges.
        bias: what attention adds to products with their keys.
    """

    index: Int[Tensor, n]
    states: Float[Tensor, "n D"]
    bias: Float[Tensor, n]


def choose(
    methods: Sequence[Method],
    states: Float[Tensor, "N D"],
    layers: int,
    look: Look | None,
    per_image: int | None,
    grid: tuple[int, int] | None,
) -> Choice:
    """What methods do with one picture, of which they see nothing but itself.

    Args:
        methods: consulted in order.
        states: the picture's embeddings.
        layers: depth of the decoder.
        look: gives what the vision tower made of it, or None.
        per_image: visual tokens of an image, if the family has a fixed number.
        grid: of its tokens, or None.
    """
    visual = torch.ones(1, len(states), dtype=torch.bool, device=states.device)
    return _choose(methods, states, visual, layers, look, per_image, grid)


def _choose(
    methods: Sequence[Method],
    states: Tensor,
    visual: Bool[Tensor, "1 C"],
    layers: int,
    look: Look | None,
    per_image: int | None,
    grid: tuple[int, int] | None,
) -> Choice:
    """As `choose`, in a prompt of which `visual` says what is a picture's; `index` is of columns."""
    tokens = classify(visual, torch.ones_like(visual), per_image=per_image, grid=grid)
    columns = torch.arange(visual.shape[1], device=states.device)
    numbers = Numbers.ones(1, visual.shape[1], states.device)
    notes: dict[str, Tensor] = {}
    for method in methods:
        here = columns[visual[0, columns]]
        view = View(
            layer=0,
            step=0,
            layers=layers,
            total=visual.sum()[None],
            visual=here[None],
            mask=torch.ones_like(here, dtype=torch.bool)[None],
            hidden=states[None],
            rows=columns[None],
            tokens=tokens,
            notes=notes,
            look=look,
            numbers=numbers.of(here[None]),
        )
        found = method.select(view)
        if found is None:
            continue
        keep = found.keep
        if method.merge is not None:
            merged = method.merge(view, keep, found.counts)
            states = replace_rows(view.hidden, view.place(), keep, merged)[0]
        if method.weigh is not None:
            counts = method.numbers(method.weigh, view, keep, found.counts)
            numbers = numbers.changed(view.visual, keep, counts, method.weigh.strength)
        stays = torch.ones(len(columns), dtype=torch.bool, device=states.device)
        stays[view.place()[0][~keep[0]]] = False
        columns, states = columns[stays], states[stays]
    chosen = visual[0, columns]
    return Choice(columns[chosen], states[chosen], numbers.biases(columns[chosen][None])[0])


@lru_cache(maxsize=256)
def check_before(text: str, layers: int) -> None:
    """Raises ValueError where the methods that `text` names cannot go the way "before"."""
    try:
        _check_before(text, layers)
    except ValueError as error:
        raise ValueError(
            f'{text} cannot go the way "before": {error}; take another method, or leave "way" out of '
            "the server's settings"
        ) from None


def _check_before(text: str, layers: int) -> None:
    methods = methods_of(text)
    for method in methods:
        if any(method.drops(layer, 0) for layer in range(1, min(layers, DEEPEST))):
            raise ValueError(f"{method.name} decides before layers deeper than 0")
        _planned(method, 64, layers)
    if drops_while_decoding(text):
        raise ValueError("it decides while decoding")
    if methods and not _alone(methods, layers, (64,)):
        raise ValueError("it does not choose by the picture alone")


@lru_cache(maxsize=4096)
def each_alone(text: str, layers: int, sizes: tuple[int, ...]) -> bool:
    """Whether methods decide on each of several pictures, of so many tokens, as if it were alone.

    That hangs on the sizes: a quarter of 63 and of 25 tokens is 21, one of them together 22.
    """
    return _alone(methods_of(text), layers, sizes)


def _alone(methods: Sequence[Method], layers: int, sizes: tuple[int, ...]) -> bool:
    """Whether methods do the same with made-up pictures in a prompt as with each by itself."""
    made = torch.Generator().manual_seed(1)
    pieces, visual = [torch.randn(5, 16, generator=made)], [torch.zeros(5, dtype=torch.bool)]
    for size in sizes:
        pieces += [torch.randn(size, 16, generator=made), torch.randn(7, 16, generator=made)]
        visual += [torch.ones(size, dtype=torch.bool), torch.zeros(7, dtype=torch.bool)]
    whole, images = torch.cat(pieces), torch.cat(visual)
    seen = torch.rand(len(whole), 4, 8, generator=made)

    def look(shift: int) -> Look:
        def found(what: Any, layer: Any, columns: Tensor) -> Tensor:
            rows = seen[columns[0] + shift]
            parts = {
                "attention": rows[..., 0],
                "states": rows.flatten(1),
                "known": rows[:, 0, 0] * 0 + 1,
            }
            found: Tensor = parts.get(what, rows)
            return found[None]

        return found

    together = _choose(methods, whole, images[None], layers, look(0), None, None)
    index, states, bias, start = [], [], [], 5
    for size in sizes:
        one = choose(methods, whole[start : start + size], layers, look(start), None, None)
        index.append(one.index + start)
        states.append(one.states)
        bias.append(one.bias)
        start += size + 7
    return (
        torch.equal(torch.cat(index), together.index)
        and torch.allclose(torch.cat(states), together.states, atol=1e-5)
        and torch.allclose(torch.cat(bias), together.bias, atol=1e-5)
    )


@dataclass(frozen=True)
class Stretch:
    """A run of visual tokens in a prompt.

    Attributes:
        start: its first column.
        total: its columns.
    """

    start: int
    total: int


def stretch_of(place: Any) -> Stretch:
    """Where a picture's visual tokens are, from vLLM's `PlaceholderRange`.

    Raises:
        ValueError: other tokens lie among them.
    """
    if place.is_embed is None:
        return Stretch(place.offset, place.length)
    where = torch.as_tensor(place.is_embed).nonzero()[:, 0]
    if len(where) == 0 or int(where[-1] - where[0]) + 1 != len(where):
        raise ValueError(
            "other tokens lie among this picture's, as between tiles; the order of what attention sees would change"
        )
    return Stretch(place.offset + int(where[0]), len(where))


def shorten(request: Any, text: str, config: Any) -> None:
    """Takes placeholders of pictures out of a request that vLLM is about to admit.

    Args:
        request: vLLM's `EngineCoreRequest`.
        text: the methods that it chose.
        config: vLLM's `ModelConfig`.

    Raises:
        ValueError: the methods cannot go this way; a picture cannot be shortened; or there are
            several, and the methods do not decide on each alone.
    """
    features = request.mm_features or []
    if not methods_of(text) or not features:
        return
    layers = config.hf_text_config.num_hidden_layers
    check_before(text, layers)
    if any(feature.modality != "image" for feature in features):
        raise ValueError(
            f"{text} in the way before shortens images alone; choose foveate=none for others"
        )
    runs = [stretch_of(feature.mm_position) for feature in features]
    if len(runs) > 1 and not each_alone(text, layers, tuple(run.total for run in runs)):
        raise ValueError(
            f"{text} shares its tokens out among pictures of {', '.join(str(run.total) for run in runs)} tokens, and "
            "in the way before each is decided on alone; send one picture, or choose foveate=none"
        )
    adapter = adapters().get(config.hf_config.model_type)
    fixed = None if adapter is None else adapter.per_image(config.hf_config)
    if fixed is None and any(a.start + a.total == b.start for a, b in pairwise(runs)):
        raise ValueError(f"pictures touch, so {text} takes them for one; put text between them")
    ids = list(request.prompt_token_ids)
    if runs[-1].start + runs[-1].total == len(ids):
        raise ValueError(
            "the prompt ends with a picture, whose last token must then stay; put text after it"
        )
    room = config.max_model_len - len(ids)  # positions stay below it, as without Foveate
    shifted, moved = 0, []
    for feature, run in zip(features, runs, strict=True):
        cut = Shortening(run.total, text)
        kept = cut.kept(layers)
        if kept == 0:
            raise ValueError(
                f"{text} keeps none of a picture's tokens, and the way before needs one or more"
            )
        gone = run.total - kept
        place = feature.mm_position
        first = run.start - shifted
        del ids[first + kept : first + run.total]
        flags = place.is_embed
        if flags is not None:
            at = run.start - place.offset
            flags = torch.cat([flags[: at + kept], flags[at + run.total :]])
        where = replace(
            place, offset=place.offset - shifted, length=place.length - gone, is_embed=flags
        )
        moved.append(replace(feature, mm_position=where, identifier=cut.named(feature.identifier)))
        shifted += gone
    request.prompt_token_ids = ids
    request.mm_features = moved
    request.sampling_params.max_tokens = min(request.sampling_params.max_tokens, room)
