"""What a kept token stands for, written naively for one sample: dictionaries from columns, loops, no tensors of masks.

Beside `oracle` and `masked`, which put it into attention. From docs/weighting.md alone; shares no code with the engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Of = Callable[[int], Tensor]  # column -> vector


@dataclass(frozen=True)
class Speaking:
    """How one method's kept tokens speak for its dropped ones.

    `weigh` is one of none, nearest, cell, mixed, uniform, clusters.
    """

    weigh: str = "nearest"
    mean: bool = False
    strength: float = 1.0
    place: float = 1.0
    cutoff: float = 0.7

    @property
    def spec(self) -> str:
        """As the command line has it."""
        said = [f"weigh={self.weigh}"]
        said += ["merge=mean", f"cutoff={self.cutoff}"] if self.mean else []
        said += [f"place={self.place}"] if self.weigh == "mixed" else []
        said += [f"strength={self.strength}"] if self.strength != 1.0 else []
        return ",".join(said)

    def knobs(self) -> dict[str, object]:
        """As `Method.weighted` takes them."""
        return {
            "weigh": self.weigh,
            "merge": "mean" if self.mean else "own",
            "strength": self.strength,
            "place": self.place if self.weigh == "mixed" else None,
            "cutoff": self.cutoff if self.mean else None,
        }

    def joins(
        self, kept: list[int], gone: list[int], number: dict[int, int], side: int | None, of: Of,
        clusters: dict[int, int] | None = None,
    ) -> dict[int, int]:  # fmt: skip
        """Whom each dropped token of one image joins.

        `number` is its place in the image, `side` that of the image's square grid, if it has one, `of` what tells how
        alike tokens are, `clusters` into which token the method merged each.
        """
        size = len(number)
        if self.weigh == "clusters" and clusters is not None:
            return {g: clusters[g] for g in gone if clusters.get(g) in kept}

        def apart(a: int, b: int) -> float:
            if side is None:
                return (number[a] - number[b]) ** 2 / size**2
            rows = number[a] // side - number[b] // side
            columns = number[a] % side - number[b] % side
            return (rows**2 + columns**2) / side**2

        def alike(a: int, b: int) -> float:
            if self.weigh == "cell":
                return -apart(a, b)
            found = cosine(of(a), of(b))
            return found - self.place * apart(a, b) if self.weigh == "mixed" else found

        return {g: max(kept, key=lambda k: (alike(g, k), -k)) for g in gone} if kept else {}

    def numbers(
        self, kept: list[int], gone: list[int], joins: dict[int, int], before: dict[int, float]
    ) -> dict[int, float]:
        """For how many tokens each kept one speaks after the cut."""
        if self.weigh == "uniform":
            whole = sum(before[c] for c in (*kept, *gone))
            return {k: whole / len(kept) for k in kept}
        return {
            k: before[k] + sum(before[g] for g, into in joins.items() if into == k) for k in kept
        }

    def means(
        self, kept: list[int], joins: dict[int, int], before: dict[int, float], of: Of, values: Of
    ) -> dict[int, Tensor]:
        """New values of those kept tokens that others are averaged into."""
        found = {}
        for k in kept:
            members = [g for g, into in joins.items() if into == k]
            members = [g for g in members if cosine(of(g), of(k)) >= self.cutoff]
            if members:
                total = before[k] + sum(before[g] for g in members)
                found[k] = sum(before[c] / total * values(c) for c in (k, *members))
        return found


def cosine(a: Tensor, b: Tensor) -> float:
    """Of two vectors; 0 with a vector of zeros."""
    length = math.sqrt(float(a.double() @ a.double())) * math.sqrt(float(b.double() @ b.double()))
    return float(a.double() @ b.double()) / length if length else 0.0


def images(columns: list[int], image_of: list[int]) -> list[list[int]]:
    """Columns of visual tokens, image by image."""
    return [
        [c for c in columns if image_of[c] == image]
        for image in sorted({image_of[c] for c in columns})
    ]


def places(image_of: list[int], image: int) -> dict[int, int]:
    """The number in its image of each column that the image came with."""
    return {c: i for i, c in enumerate(c for c, owner in enumerate(image_of) if owner == image)}


def biases(numbers: dict[int, float], strength: float, columns: int) -> Tensor:
    """What attention adds to products with each column's key."""
    return torch.tensor([strength * math.log(numbers.get(c, 1.0)) for c in range(columns)])
