"""Answers one prompt under several methods, and notes for the explorer what happened meanwhile."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from ..core.method import Method
from ..cost.flops import cost_of_trace, shapes
from ..cost.vision import vision_flops
from ..engine.trace import Trace
from ..inspect.attention import attention_paid
from ..inspect.kept import kept_sets
from ..inspect.places import Place, places
from ..models.images import open_image
from ..models.loaded import Loaded
from .report import Panel, Run, Sample

UNPRUNED = "unpruned"  # what the model alone is called
_LARGEST = 896  # pixels of a picture's longer side in the page
_DIGITS = 5


def sample(
    loaded: Loaded,
    pictures: Sequence[Any],
    prompt: str,
    methods: Mapping[str, Sequence[Method]],
    *,
    title: str = "",
    truth: str = "",
    max_new_tokens: int = 64,
    tick: Callable[[], None] = lambda: None,
) -> Sample:
    """Runs every method on one prompt, greedily; twice each, since watching attention has a cost.

    Args:
        loaded: the model.
        pictures: of the prompt, as `open_image` takes them; at least one.
        prompt: the question.
        methods: parsed methods by the name that the page shows; none at all for `UNPRUNED`.
        title: of the sample.
        truth: what the pictures show, if that is known.
        max_new_tokens: longest answer.
        tick: called after each method.

    Raises:
        ValueError: no pictures, a method that does not fit the model, or a prompt without visual
            tokens.
    """
    if not pictures:
        raise ValueError("the explorer shows what is kept of pictures; expected at least one")
    opened = [open_image(picture) for picture in pictures]
    inputs = loaded.inputs(opened, prompt)
    tower = vision_flops(loaded.model, inputs)
    runs = []
    for name, parts in methods.items():
        runs.append(_run(loaded, inputs, name, parts, tower, max_new_tokens))
        tick()
    visual = len(runs[0].reached[0])
    panels = tuple(_panel(place) for place in places(loaded, inputs, opened, visual))
    return Sample(title, prompt, loaded.anatomy.depth, panels, tuple(runs), truth)


def _panel(place: Place) -> Panel:
    image = "" if place.picture is None else data_uri(place.picture)
    width, height = (0, 0) if place.picture is None else place.picture.size
    return Panel(place.title, image, width, height, place.tokens, place.grid, place.note)


def _run(
    loaded: Loaded,
    inputs: Mapping[str, Any],
    name: str,
    methods: Sequence[Method],
    tower: float,
    max_new_tokens: int,
) -> Run:
    kept = kept_sets(loaded.model, inputs, max_new_tokens, *methods)
    paid = attention_paid(loaded.model, inputs, max_new_tokens, *methods)
    flops, cache, unknown = _costs(loaded, kept.trace, tower)
    return Run(
        method=name,
        answer=loaded.decode(kept.answer),
        words=words_of(loaded.tokenizer, kept.answer),
        reached=_rows(kept.reached),
        shares=_rows(paid.shares[:, :, 1].round(_DIGITS)),
        split=_rows(paid.shares.mean(1).round(_DIGITS)),
        attention=_rows(paid.tokens.round(_DIGITS + 2)),
        flops=flops,
        cache=cache,
        unknown=unknown,
    )


def _rows(values: Any) -> tuple[tuple[Any, ...], ...]:
    """An array of two axes as plain numbers."""
    return tuple(tuple(row) for row in values.tolist())


def _costs(
    loaded: Loaded, trace: Trace, tower: float
) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """FLOPs of each forward and bytes of the KV cache after it; or nothing, and why."""
    try:
        shape = shapes(loaded.model)
    except ValueError as error:
        return (), (), str(error)
    costs = [
        cost_of_trace(
            shape, Trace(trace.layers, trace.methods, [done]), tower=0.0 if step else tower
        )
        for step, done in enumerate(trace.passes)
    ]
    return tuple(c.flops for c in costs), tuple(c.kv_bytes for c in costs), ""


def words_of(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """Each token's part of the text, spaces included; special tokens by their names.

    Bytes of an unfinished character give an empty part; the token that ends it gives it whole.
    """
    special = set(tokenizer.all_special_ids)
    parts = []
    said = ""
    plain: list[int] = []
    for token in ids:
        if token in special:
            parts.append(f" {tokenizer.convert_ids_to_tokens(token)}")
            continue
        plain.append(token)
        text = tokenizer.decode(plain)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            parts.append("")
            continue
        parts.append(
            text.removeprefix(said) if text.startswith(said) else tokenizer.decode([token])
        )
        said = text
    return tuple(parts)


def data_uri(picture: Image.Image) -> str:
    """The picture inside of a page, scaled down to `_LARGEST` pixels."""
    small = picture.copy()
    small.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    small.save(written, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}"
