"""How many visual tokens a request held: what workers tell the scheduler, and responses their reader."""

from __future__ import annotations

from dataclasses import dataclass

NEWS = "foveate_kept"  # the attribute of vLLM's ModelRunnerOutput: `Held` by request


@dataclass(frozen=True)
class Held:
    """What a request held when it was last looked at.

    Attributes:
        total: visual tokens that it started with.
        layers: visual tokens that each layer held; a single number where all held the same.
    """

    total: int
    layers: tuple[int, ...]

    @property
    def said(self) -> dict[str, int | float]:
        """As a response has it."""
        mean = sum(self.layers) / len(self.layers)
        return {
            "visual_tokens": self.total,
            "kept_in_last_layer": self.layers[-1],
            "kept_on_average": round(mean, 2),
        }
