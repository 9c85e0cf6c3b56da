"""What a decision may be learned from: how attention splits over the four token types."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .tokens import Kind
from .view import View

TYPES = (Kind.SYSTEM, Kind.IMAGE, Kind.INSTRUCTION, Kind.RESPONSE)


def shares_by_type(view: View) -> Float[Tensor, "B H 4"]:
    """Attention that the layer before paid from each sample's newest token to the types of `TYPES`, head by head.

    The four sum to 1 (DyRate, 2501.14204, Section III-B). The newest token itself counts as what it is.
    """
    attention = view.attention(view.newest)[:, :, 0]
    return torch.stack([(attention * view.tokens.are(kind)[:, None]).sum(-1) for kind in TYPES], -1)
