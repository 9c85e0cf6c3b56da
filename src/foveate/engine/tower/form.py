"""How a vision tower is built, read off its modules: layers, projector, and which patches become which token."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ...core.tower import Layer
from ..modules import first_of, projector_of, tower_of

READ = (
    "multi_modal_projector",
    "connector",
    "merger",
)  # projectors behind which the tests read attention
NORMS = ("layer_norm1", "layernorm_before", "norm1")
ATTENTIONS = ("self_attn", "attention", "attn")


@dataclass(frozen=True)
class TowerForm:
    """How a family's tower is built.

    Attributes:
        layers: of the tower, in order.
        last: the layer whose output the projector reads.
        projector: gives the tokens.
        summary: whether a [CLS] row comes before the patches.
        packed: whether all images run as one sequence, and each run of patches becomes a token (Qwen), in place of each
            square of an image's grid (pixel shuffle).
        pool: what the family makes of a video's tokens after the projector, (F P D) to (F p D), one channel like
            another; None where it makes nothing of them.
    """

    layers: Any
    last: int
    projector: nn.Module
    summary: bool
    packed: bool
    pool: Callable[[Tensor], Tensor] | None = None

    def index(self, layer: Layer) -> int:
        """The layer's number.

        Raises:
            ValueError: the tower has no such layer.
        """
        depth = len(self.layers)
        if isinstance(layer, float):
            found = math.floor(layer * depth)
        else:
            found = self.last if layer is None else layer if layer >= 0 else self.last + layer
        if not 0 <= found < depth:
            raise ValueError(
                f"tower layer {layer}: the tower has layers 0 to {depth - 1}, of which the model reads layer "
                f"{self.last} (-1 is the one before it)"
            )
        return found

    def patches(self, count: int, tokens: int, pictures: int) -> Int[Tensor, "R m"]:
        """The patches of every token that the projector gave out; -1 for a [CLS] that is kept among the tokens.

        Args:
            count: patches in all.
            tokens: tokens in all.
            pictures: that went through together; 1 where they are packed.

        Raises:
            ValueError: a projector that resamples, whose tokens have no patches of their own.
        """
        if tokens and count % tokens == 0 and (self.packed or count == tokens):
            return torch.arange(count, device="cpu").view(tokens, -1)
        each = count // pictures
        own = tokens // pictures
        first = (torch.arange(pictures, device="cpu") * each)[:, None, None]
        if self.summary and own == each + 1:
            inside = torch.arange(-1, each, device="cpu")[None, :, None]
            return torch.where(inside < 0, -1, inside + first).flatten(0, 1)
        side = math.isqrt(each)
        ratio = math.isqrt(each // max(own, 1))
        if own and side * side == each and ratio * ratio * own == each and side % ratio == 0:
            squares = (
                torch.arange(each, device="cpu")
                .view(side // ratio, ratio, side // ratio, ratio)
                .transpose(1, 2)
            )
            return (squares.reshape(1, own, -1) + first).flatten(0, 1)
        raise ValueError(
            f"the projector makes {tokens} tokens of {count} patches, which is neither a token a patch nor one a "
            "square of patches, so attention to patches says nothing about tokens. Use a method that needs no tower, "
            "such as divprune."
        )


def known_tower(body: Any) -> TowerForm:
    """Reads the form off the modules of a multimodal body.

    Raises:
        ValueError: a tower of another form.
    """
    tower = tower_of(body)
    projector = projector_of(body, READ)
    layers = stack_of(tower, _readable)
    if tower is None or layers is None or projector is None:
        raise ValueError(
            f"the vision tower of {type(body).__name__} is not of a form whose attention can be read "
            f"({type(tower).__name__}, projector {type(projector).__name__}); supported are towers like CLIP's, "
            "SigLIP's, InternVL's and Qwen's. Use a method that needs no tower, such as divprune."
        )
    return TowerForm(
        layers,
        last_read(body.config, len(layers)),
        projector,
        has_summary(tower),
        hasattr(first_of(layers[0], ATTENTIONS), "qkv"),
        getattr(body, "apply_pooling", None),
    )


def stack_of(tower: Any, readable: Callable[[nn.Module], bool]) -> Any:
    """The tower's layers: its first list of modules that all are `readable`; None if it has none."""
    modules = [] if tower is None else tower.modules()
    stacks = (m for m in modules if isinstance(m, nn.ModuleList) and len(m))
    return next((stack for stack in stacks if all(map(readable, stack))), None)


def has_summary(tower: nn.Module) -> bool:
    """Whether a [CLS] row comes before the patches."""
    names = ("class_embedding", "cls_token")
    return any(name.rpartition(".")[2] in names for name, _ in tower.named_parameters())


def _readable(layer: nn.Module) -> bool:
    attention = first_of(layer, ATTENTIONS)
    rotary = hasattr(
        sys.modules[type(attention).__module__], "apply_rotary_pos_emb_vision"
    )  # not so in timm's towers
    packed = hasattr(attention, "qkv") and rotary
    projects = packed or all(hasattr(attention, f"{part}_proj") for part in "qkv")
    return projects and first_of(layer, NORMS) is not None and hasattr(attention, "num_heads")


def last_read(config: Any, depth: int) -> int:
    """The deepest layer whose output is read; transformers counts hidden states, of which the first is the input."""
    wanted = next(
        (
            getattr(config, n)
            for n in ("vision_feature_layer", "vision_feature_layers")
            if hasattr(config, n)
        ),
        -1,
    )
    each = [wanted] if isinstance(wanted, int) else wanted
    return max(depth + n if n < 0 else n - 1 for n in each)
