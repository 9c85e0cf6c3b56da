"""What a request is, and what it will cost under methods, told before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..core.method import Method
from ..methods import as_methods
from ..models.lengths import Length
from .architecture import Architecture
from .conventions import MLP, prefill
from .flops import Cost, cost_of_counts, cuts_by, kept_by
from .pictures import PictureSize, Size, picture


@dataclass(frozen=True)
class Request:
    """One sample of a batch.

    Attributes:
        text: prompt tokens that are not visual.
        visual: visual tokens of the prompt.
        new_tokens: tokens generated.
        batch: such samples at once.
        pictures: those that go through the tower.
    """

    text: int
    visual: int
    new_tokens: int
    batch: int = 1
    pictures: tuple[PictureSize, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("text", 1), ("visual", 0), ("new_tokens", 1), ("batch", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}; expected {least} or more")


def request(
    config: Any,
    *,
    text: int,
    images: int,
    new_tokens: int,
    batch: int = 1,
    size: Size | None = None,
    tiles: int = 1,
    visual: int | None = None,
) -> Request:
    """A request of `images` like pictures.

    Args:
        config: of the model.
        text: prompt tokens that are not visual.
        images: pictures of a sample.
        new_tokens: tokens generated.
        batch: samples at once.
        size: (width, height) of each picture.
        tiles: of each picture, where the processor decides.
        visual: visual tokens of a sample, in place of what the pictures would make; where the
            family's rule is not known the tower is then left out.

    Raises:
        ValueError: a number out of range, or pictures whose tokens cannot be told.
    """
    if images < 0:
        raise ValueError(f"images={images}; expected 0 or more")
    pictures: tuple[PictureSize, ...] = ()
    if images:
        try:
            pictures = (picture(config, size, tiles),) * images
        except ValueError:
            if visual is None:
                raise
    made = sum(p.tokens for p in pictures)
    return Request(text, made if visual is None else visual, new_tokens, batch, pictures)


def request_of(
    config: Any, found: Length, sizes: Sequence[Size], *, new_tokens: int, batch: int = 1
) -> Request:
    """The request of one prompt that was counted.

    The tower's work on a picture is taken in closed form, where that makes as many tokens of it as
    were counted; else the tower is left out (`pictures` is then empty).

    Args:
        config: of the model.
        found: the prompt's tokens.
        sizes: (width, height) of each picture in pixels.
        new_tokens: tokens generated.
        batch: such prompts at once.
    """
    pictures = _towers(config, found, sizes)
    return Request(found.text, found.visual, new_tokens, batch, tuple(pictures))


def _towers(config: Any, found: Length, sizes: Sequence[Size]) -> list[PictureSize]:
    """The pictures on their way through the tower; none if one of them is not known."""
    made: list[PictureSize] = []
    for number, count in enumerate(found.pictures or ()):
        size = sizes[number]
        if found.grids:  # the processor has scaled the picture to so many patches
            rows, columns = found.grids[number]
            size = (
                columns * config.vision_config.patch_size,
                rows * config.vision_config.patch_size,
            )
        try:
            one = picture(config, size)
            if one.tokens and count % one.tokens == 0:  # as many tiles as the processor has made
                one = picture(config, size, count // one.tokens)
        except ValueError:
            return []
        if one.tokens != count:
            return []
        made.append(one)
    return made


def cost_of(model: Architecture, asked: Request, methods: Sequence[Method | str] = ()) -> Cost:
    """FLOPs and KV bytes of the whole batch; what ranking tokens takes is not foreseen and is left
    out.

    `score` has the comparing of dropped with kept tokens alone, which weights and means by cosine
    take at every cut.

    Raises:
        ValueError: a schedule that depends on the input, or that does not fit the decoder.
    """
    tower = model.vision_flops(asked.pictures)
    counts = kept(model, asked, methods)
    one = cost_of_counts(
        model.shapes,
        counts,
        text=asked.text,
        new_tokens=asked.new_tokens,
        visual=asked.visual,
        tower=tower,
        cuts=cuts_by(as_methods(methods), len(counts), asked.visual),
    )
    return Cost(**{name: asked.batch * value for name, value in vars(one).items()})


def kept(model: Architecture, asked: Request, methods: Sequence[Method | str]) -> list[int]:
    """Visual tokens that each layer of the prefill sees.

    Raises:
        ValueError: as `cost_of`.
    """
    depth = len(model.shapes.layers)
    chosen = as_methods(methods)
    for method in chosen:
        method.check(depth)
    return kept_by(chosen, depth, asked.visual)


def papers(
    model: Architecture, asked: Request, methods: Sequence[Method | str]
) -> dict[str, dict[str, float]]:
    """Prefill in the papers' conventions: "flops" of one sample, and "ratio" to the unpruned model."""
    hidden = model.shapes.layers[0].hidden
    counts = kept(model, asked, methods)
    out = {}
    for name in MLP:
        ours = prefill(counts, asked.text, hidden, model.inner, name)
        whole = prefill([asked.visual] * len(counts), asked.text, hidden, model.inner, name)
        out[name] = {"flops": ours, "ratio": ours / whole}
    return out
