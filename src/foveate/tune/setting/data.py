"""What is asked, apart in two: examples to choose on, and examples to certify on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...eval.tasks import Sample, identity

FEWEST = 8  # pictures: with fewer there is nothing to choose by
PART = 1 / 3  # of the pictures, to choose on: a certificate needs more than a choice


@dataclass(frozen=True)
class Asked:
    """The examples of a tuning.

    Attributes:
        name: where they are from.
        choose: examples that settings are chosen on.
        certify: examples that nothing else is seen of until the end.
        unusable: rows that were left out, each with its reason.
    """

    name: str
    choose: list[Sample]
    certify: list[Sample]
    unusable: list[str] = field(default_factory=list)

    @property
    def both(self) -> list[Sample]:
        """All examples."""
        return [*self.choose, *self.certify]

    def facts(self) -> dict[str, Any]:
        """How many there are, and hashes of what is asked."""
        parts = {"choose": self.choose, "certify": self.certify}
        return {
            "name": self.name,
            "unusable": len(self.unusable),
            **{
                part: {
                    "examples": len(samples),
                    "pictures": len({sample.group for sample in samples}),
                    "sha256": identity(samples),
                }
                for part, samples in parts.items()
            },
        }


def apart(
    name: str,
    samples: Sequence[Sample],
    seed: int,
    unusable: Sequence[str] = (),
    part: float = PART,
) -> Asked:
    """Divides examples by their pictures, at random: what is asked of one picture stays together.

    Args:
        name: where they are from.
        samples: all of them.
        seed: of the division.
        unusable: rows that were left out.
        part: of the pictures, to choose on.

    Raises:
        ValueError: too few pictures, or a part out of range.
    """
    if not 0 < part < 1:
        raise ValueError(f"part={part:g} of the pictures to choose on; expected one in (0, 1)")
    groups = list(dict.fromkeys(sample.group for sample in samples))
    if len(groups) < FEWEST:
        raise ValueError(
            f"{name} has {len(groups)} picture{'s' * (len(groups) != 1)}; expected {FEWEST} or more, and 50 to 500 to "
            "certify anything: a third of them choose, the others certify"
        )
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(len(groups))
    count = min(max(round(part * len(groups)), 1), len(groups) - 1)
    chosen = {groups[index] for index in drawn[:count]}
    mixed = [samples[index] for index in rng.permutation(len(samples))]  # the first see all kinds
    return Asked(
        name,
        [sample for sample in mixed if sample.group in chosen],
        [sample for sample in mixed if sample.group not in chosen],
        list(unusable),
    )
