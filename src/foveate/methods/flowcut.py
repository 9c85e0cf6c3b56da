"""FlowCut-like: tokens through which most flows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.contract import Needs
from ..core.knobs import checked
from ..core.method import Method
from ..core.pictures import ByImage, EachImage, Picture, Rank, Share
from ..core.schedules import spelled


@dataclass(frozen=True)
class Flow(Rank):
    """Attention times the L1 norm of values, scaled to [0, 1] over the image, accumulated over
    layers of the tower.
    """

    fade: float

    own = Needs(tower=(0.25, 0.5, 0.75, None))

    def __call__(self, picture: Picture, count: int) -> Float[Tensor, n]:
        """Scores in [0, 1]."""
        total = torch.zeros(len(picture), device=picture.places.device, dtype=torch.float32)
        for layer in self.own.tower:
            strength = picture.of(picture.view.tower.values(layer)).abs().sum(
                (-1, -2)
            ) * picture.attention(layer)
            strength = strength - strength.min()
            total = self.fade * total + (1 - self.fade) * strength / strength.max().clamp(min=1e-30)
        return total


@checked
def flowcut(layer: int = 0, keep: float | int = 0.25, fade: float = 0.5) -> Method:
    """Before layer `layer`, keep the tokens through which most flows in the vision tower, counted
    over its depth.

    Paper: "FlowCut: Rethinking Redundancy via Information Flow for Efficient Vision-Language
    Models", Tong et al., arXiv 2505.19536: importance from the strength of [CLS] attention and the
    size of values, accumulated over layers.

    Where: before the language model; layer 0.

    Deviations: FlowCut-like, beside the authors' code: that prunes inside the tower, at every
    second layer, at a rate set by the entropy of attention; to the attention it adds how like [CLS]
    a token's value is (softmax over tokens), which needs [CLS]'s own value; and it accumulates over
    all layers. Here four layers (at a quarter, half and three quarters of the depth, and the one
    whose output the model reads) are weighed, and one cut follows the tower.

    Args:
        layer: the first layer that runs with fewer tokens; 0 is before the language model.
        keep: visual tokens kept of each image, a fraction (float) or a number (int).
        fade: weight of the layers before in the running sum.

    Raises:
        ValueError: a negative layer, `keep` out of range, or `fade` not in [0, 1).
    """
    if not 0 <= fade < 1:
        raise ValueError(f"fade={fade}; expected a number in [0, 1)")
    count = Share(keep)
    name = f"flowcut:layer={layer},keep={spelled(keep)}" + (
        "" if fade == 0.5 else f",fade={spelled(fade)}"
    )
    return Method(ByImage(Flow(fade), count), EachImage(count, layer), name=name)
