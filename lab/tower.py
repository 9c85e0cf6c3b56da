"""Stage 1 of the recipe: the tower learns dense labels, in the decoder's own words.

Every visual token is asked which shape, colour, texture, size and place the object in its patch has, and the
classifier's weights *are* the decoder's word embeddings. So the tower learns to see and the projector learns
the decoder's language at once: after this stage a visual token already reads like a bag of the right words,
and the decoder has only to learn where to look.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveate.world.draw import draw
from foveate.world.scenes import (
    BACKGROUNDS,
    COLORS,
    GRID,
    MAX_OBJECTS,
    PLACES,
    SHAPES,
    SIDE,
    SIZES,
    TEXTURES,
    sample,
)
from lab import grounding

GROUPS: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "color": tuple(COLORS),
    "texture": TEXTURES,
    "size": tuple(SIZES),
    "place": PLACES,
}
_SEEN = (
    0.08  # share of a patch's pixels that an object must own for the patch to be labelled with it
)


@dataclass(frozen=True)
class DenseLabels:
    """What stage 1 teaches about a batch; -100 where there is nothing to say."""

    groups: Int[Tensor, "B G T"]  # index within each of `GROUPS`, per visual token
    weight: Float[Tensor, "B T"]  # of a token's loss on the groups, relative to the others
    part: Int[Tensor, "B T"]  # 0 background, 1 part of an object, 2 holds an object's centre
    count: Int[Tensor, B]
    background: Int[Tensor, B]


def dense_example(
    split: str, index: int, most: int = MAX_OBJECTS, grid: int = GRID, even: bool = False
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Pixels (H W 3) of a scene and its labels on `grid` x `grid` tokens, in the order of `DenseLabels`.

    All labelled tokens weigh the same, or, if `even`, those of every object weigh the same together: a small object
    has two or three tokens, a large one sixteen.
    """
    scene = sample(split, index, most=most)
    drawing = draw(scene)
    owned = _owned_pixels(drawing.owner, len(scene.things), grid)
    best = owned.argmax(0)
    labelled = owned.max(0) >= _SEEN * (SIDE / grid) ** 2
    words = [[getattr(t, key) for t in scene.things] for key in GROUPS]
    groups = np.full((len(GROUPS), grid * grid), -100)
    for row, (options, values) in enumerate(zip(GROUPS.values(), words, strict=True)):
        index_of = np.array([options.index(value) for value in values])
        groups[row] = np.where(labelled, index_of[best], -100)
    tokens = np.bincount(best[labelled], minlength=len(scene.things))
    weight = labelled / tokens.clip(1)[best] if even else labelled.astype(np.float64)
    part = labelled.astype(np.int64)
    for thing in scene.things:
        column, row = grounding.patch(thing.x, thing.y, grid)
        part[row * grid + column] = 2
    totals = np.array(len(scene.things)), np.array(BACKGROUNDS.index(scene.background))
    return drawing.pixels, (groups, weight.astype(np.float32), part, *totals)


def _owned_pixels(owner: np.ndarray, things: int, grid: int) -> np.ndarray:
    """How many pixels (things T) of each patch each object owns."""
    line = (
        np.arange(SIDE) * grid // SIDE
    )  # the row or column of patches that a row or column of pixels lies in
    patch = line[:, None] * grid + line
    return np.stack([np.bincount(patch[owner == k], minlength=grid * grid) for k in range(things)])


@torch.no_grad()
def take(vision: Any, weights: dict[str, Tensor]) -> None:
    """Gives a tower the weights of another model's, which may have been trained with patches of another size.

    Kernel and positions are then interpolated, as is done to fine-tune at another resolution (Dosovitskiy et al.
    2010.11929, Section 3.2): a start to train on from, not yet a tower.

    Args:
        vision: the tower; its width and depth must be the other's.
        weights: of a whole LLaVA, by name.
    """
    prefix = "model.vision_tower."
    found = {k.removeprefix(prefix): v.float() for k, v in weights.items() if k.startswith(prefix)}
    kernel = "embeddings.patch_embedding.weight"
    places = "embeddings.position_embedding.weight"
    had = found[kernel].shape[-1]
    wanted = vision.config.patch_size
    if had != wanted:
        smaller = F.interpolate(
            found[kernel], size=(wanted, wanted), mode="bicubic", antialias=True
        )
        found[kernel] = smaller * (had / wanted) ** 2
        first = found[places][:1]
        grid = found[places][1:]
        side = round(len(grid) ** 0.5)
        new = vision.config.image_size // wanted
        square = grid.T.reshape(1, -1, side, side)
        grown = F.interpolate(square, size=(new, new), mode="bicubic", align_corners=False)[0]
        found[places] = torch.cat([first, grown.flatten(1).T])
    vision.load_state_dict(found)


class TowerTeacher(nn.Module):
    """The throw-away part of stage 1: scales of the word classifiers, and heads for part, count, background.

    Args:
        model: the LLaVA whose tower and projector learn.
        encode: ids of a word or phrase, as the decoder reads it inside a sentence.
    """

    ids: Tensor
    starts: Tensor

    def __init__(self, model: Any, encode: Callable[[str], list[int]]) -> None:
        super().__init__()
        text = model.config.text_config.hidden_size
        vision = model.config.vision_config.hidden_size
        self.log_scale = nn.Parameter(torch.full((len(GROUPS),), 2.0))
        self.part = nn.Linear(text, 3)
        self.count = nn.Linear(vision, MAX_OBJECTS + 1)
        self.background = nn.Linear(vision, len(BACKGROUNDS))
        ids = [encode(phrase) for group in GROUPS.values() for phrase in group]
        starts = np.cumsum([0, *map(len, ids[:-1])])
        self.register_buffer(
            "ids", torch.tensor([i for phrase in ids for i in phrase]), persistent=False
        )
        self.register_buffer("starts", torch.from_numpy(starts), persistent=False)

    def forward(
        self, model: Any, pixels: Float[Tensor, "B 3 H W"], labels: DenseLabels
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Sum of the cross-entropies, and the accuracy on each group of words (for the progress line)."""
        states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
        tokens = model.model.multi_modal_projector(states[:, 1:])
        table = model.get_input_embeddings().weight
        words = F.normalize(F.embedding_bag(self.ids, table, self.starts, mode="sum"), dim=-1)
        logits = tokens @ words.T
        loss = 0.5 * F.cross_entropy(self.part(tokens).flatten(0, 1), labels.part.flatten())
        loss = loss + 0.1 * F.cross_entropy(self.count(states[:, 0]), labels.count)
        loss = loss + 0.05 * F.cross_entropy(self.background(states[:, 0]), labels.background)
        seen: dict[str, float] = {}
        by_group = logits.split([len(g) for g in GROUPS.values()], -1)
        for row, (key, similar) in enumerate(zip(GROUPS, by_group, strict=True)):
            target = labels.groups[:, row].flatten()
            scaled = (similar * self.log_scale[row].exp()).flatten(0, 1)
            valid = target >= 0
            each = F.cross_entropy(scaled[valid], target[valid], reduction="none")
            share = labels.weight.flatten()[valid]
            loss = loss + (each * share).sum() / share.sum()
            seen[key] = (scaled.argmax(-1)[valid] == target[valid]).float().mean().item()
        return loss, seen
