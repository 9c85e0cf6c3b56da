"""What a decision may be learned from: how attention splits over the four token types."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .tokens import Kind
from .view import View

TYPES = (Kind.SYSTEM, Kind.IMAGE, Kind.INSTRUCTION, Kind.RESPONSE)


def shares_by_type(view: View) -> Float[Tensor, "B H 4"]:
    """Attention that the layer before pays from each sample's newest token to the types of `TYPES`,
    head by head.

    The four sum to 1 (DyRate, 2501.14204, Section III-B). The newest token itself counts as what it
    is. Before layer 0 there is no layer, so there it is what layer 0 will pay if nothing is
    dropped.
    """
    attention = view.attention(view.newest, back=min(1, view.layer))[:, :, 0]
    kinds = torch.stack([view.tokens.are(kind) for kind in TYPES], -1)
    view.spend(2.0 * attention.numel() * len(TYPES))
    return attention @ kinds.to(attention)
