"""What each column of the input is: system prompt, image, instruction, response or padding."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Kind(IntEnum):
    """The four token types of DyRate (2501.14204, §III-A), and padding."""

    SYSTEM = 0
    IMAGE = 1
    INSTRUCTION = 2
    RESPONSE = 3
    PADDING = 4


@dataclass(frozen=True)
class TokenMap:
    """Columns are places in the input as the user gave it, counted from 0 and padding included.

    A token keeps its column for its whole life, in every layer and step, dropped or not.

    Attributes:
        kind: a `Kind` per column.
        image: which of the sample's images a column belongs to, counted from 0; -1 for text and
            padding.
        grid: (rows, columns) of every image's tokens in raster order, or None where they form no
            such grid.
    """

    kind: Int[Tensor, "B C"]
    image: Int[Tensor, "B C"]
    grid: tuple[int, int] | None = None

    def are(self, kind: Kind) -> Bool[Tensor, "B C"]:
        """Which columns are of `kind`."""
        return self.kind == int(kind)

    def places(
        self, columns: Int[Tensor, "B N"]
    ) -> tuple[Int[Tensor, "B N"], Int[Tensor, "B N 2"], Float[Tensor, "B N"]]:
        """Where in its image each token is: its image, its place there, and the image's area.

        Args:
            columns: of visual tokens; -1 at fills, which get any values.

        Returns:
            The image's number; row and column on its grid, or 0 and the token's number in the image
            where there is no grid; cells of the grid, or the image's number of tokens squared where
            there is none.
        """
        index = columns.clamp(min=0)
        image = self.image.gather(1, index)
        number = self._numbers().gather(1, index)
        if self.grid is not None:
            height, width = self.grid
            inside = number % (height * width)
            place = torch.stack([inside // width, inside % width], -1)
            return image, place, torch.full_like(image, height * width, dtype=torch.float32)
        size = torch.zeros_like(self.image).scatter_add(
            1, self.image.clamp(min=0), self.image.ge(0).long()
        )
        place = torch.stack([torch.zeros_like(number), number], -1)
        return image, place, size.gather(1, image.clamp(min=0)).float() ** 2

    def _numbers(self) -> Int[Tensor, "B C"]:
        """Each visual token's number in its image, counted from 0; images follow one another."""
        visual = self.image >= 0
        count = visual.long().cumsum(1) - 1
        start = torch.where(visual, count, 2**40)
        first = torch.full_like(self.image, 2**40).scatter_reduce(
            1, self.image.clamp(min=0), start, "amin"
        )
        return torch.where(visual, count - first.gather(1, self.image.clamp(min=0)), 0)

    def extended(self, other: TokenMap) -> TokenMap:
        """This map followed by the columns of `other`, whose images are counted on from ours."""
        shift = self.image.amax(1, keepdim=True) + 1 if self.image.shape[1] else 0
        image = torch.where(other.image >= 0, other.image + shift, other.image)
        grid = (
            self.grid if self.grid == other.grid or not bool(other.are(Kind.IMAGE).any()) else None
        )
        return TokenMap(
            torch.cat([self.kind, other.kind], 1), torch.cat([self.image, image], 1), grid
        )

    def with_responses(self, columns: int) -> TokenMap:
        """This map grown to `columns` columns by response tokens."""
        batch, have = self.kind.shape
        kind = self.kind.new_full((batch, columns - have), int(Kind.RESPONSE))
        return TokenMap(
            torch.cat([self.kind, kind], 1), torch.cat([self.image, kind * 0 - 1], 1), self.grid
        )

    def ending_at(self, column: int) -> TokenMap:
        """This map with all columns from `column` on as padding: what came before them has not seen
        them.
        """
        late = torch.arange(self.kind.shape[1], device=self.kind.device) >= column
        return TokenMap(torch.where(late, int(Kind.PADDING), self.kind), self.image, self.grid)

    def responding_from(self, column: int) -> TokenMap:
        """This map with instruction columns from `column` on as responses."""
        late = torch.arange(self.kind.shape[1], device=self.kind.device) >= column
        kind = torch.where(late & self.are(Kind.INSTRUCTION), int(Kind.RESPONSE), self.kind)
        return TokenMap(kind, self.image, self.grid)


def classify(
    visual: Bool[Tensor, "B T"],
    real: Bool[Tensor, "B T"],
    *,
    per_image: int | None = None,
    grid: tuple[int, int] | None = None,
    opening: bool = True,
) -> TokenMap:
    """The token map of a prompt: what precedes the first image is system, later text instruction.

    Args:
        visual: which columns hold visual tokens.
        real: which columns are not padding.
        per_image: visual tokens of one image, if all have the same; images that touch are told
            apart by it.
        grid: passed on to the map.
        opening: whether this is the start of a conversation; in a later turn no text is system.
    """
    before = visual.long().cumsum(1) == 0
    kind = torch.full_like(visual, int(Kind.INSTRUCTION), dtype=torch.long)
    if opening:
        has_image = visual.any(1, keepdim=True)
        kind = kind.masked_fill(before & has_image, int(Kind.SYSTEM))
    kind = kind.masked_fill(visual, int(Kind.IMAGE)).masked_fill(~real, int(Kind.PADDING))
    if per_image:
        number = (visual.long().cumsum(1) - 1) // per_image
    else:
        starts = visual & ~torch.nn.functional.pad(visual, (1, 0))[:, :-1]
        number = starts.long().cumsum(1) - 1
    return TokenMap(kind, torch.where(visual, number, -1), grid)
