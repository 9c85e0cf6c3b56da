"""Which tokens matter: callables from a `View` to (B N), higher = keep."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .view import View


@dataclass(frozen=True)
class LastQuery:
    """Attention of the newest token to each visual token in the layer before, mean over heads (FastV's code)."""

    def __call__(self, view: View) -> Float[Tensor, "B N"]:
        """Scores in [0, 1]."""
        return view.of_visual(view.attention(view.newest)[:, :, 0]).mean(1)


@dataclass(frozen=True)
class Random:
    """A fixed pseudo-random order that depends on the seed and on a token's number in its sample, on nothing else.

    So a sample gets the same order alone and in a batch. Average over seeds for a fair control.
    """

    seed: int = 0

    def __call__(self, view: View) -> Float[Tensor, "B N"]:
        """Scores in [0, 1)."""
        first = view.tokens.image.ge(0).long().cumsum(1) - 1
        number = first.gather(1, view.visual.clamp(min=0))
        mixed = number * 2654435761 + (self.seed + 1) * 40503 * 65537
        for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39), (15, 1)):
            mixed = ((mixed & 0xFFFFFFFF) ^ ((mixed & 0xFFFFFFFF) >> shift)) * factor
        return (mixed & 0xFFFFFF).float() / 2**24


@dataclass(frozen=True)
class Even:
    """An order in which every beginning is spread evenly over each image: what plain downsampling keeps.

    On a grid of tokens the order is that of Bayer's dither matrix, so that a quarter of the tokens is every second
    row and column; where tokens form no grid it is the van der Corput order of their numbers.
    """

    def __call__(self, view: View) -> Float[Tensor, "B N"]:
        """Scores in (-1, 0]."""
        image = view.tokens.image
        inside = torch.zeros_like(image)
        for i in range(int(image.max()) + 1 if image.numel() else 0):
            inside = torch.where(image == i, (image == i).long().cumsum(1) - 1, inside)
        number = inside.gather(1, view.visual.clamp(min=0))
        if view.tokens.grid is None:
            return -_reversed_bits(number, 24).float() / 2**24
        row, column = number // view.tokens.grid[1], number % view.tokens.grid[1]
        return -_bayer(row, column, 8).float() / 2**16


def _reversed_bits(number: Tensor, bits: int) -> Tensor:
    out = torch.zeros_like(number)
    for i in range(bits):
        out = out | (((number >> i) & 1) << (bits - 1 - i))
    return out


def _bayer(row: Tensor, column: Tensor, bits: int) -> Tensor:
    """Rank of (row, column) in Bayer's matrix of side 2**bits: bits of row ^ column and row, interleaved, reversed."""
    out = torch.zeros_like(row)
    crossed = row ^ column
    for i in range(bits):
        pair = (((crossed >> i) & 1) << 1) | ((row >> i) & 1)
        out = out | (pair << (2 * (bits - 1 - i)))
    return out
