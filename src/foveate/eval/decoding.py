"""How answers are generated: greedy, by beams or by sampling, with a KV cache or without."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Decoding:
    """Knobs of `generate`, in its words; the default is greedy. `top_k`, `top_p` and `temperature` sample.

    Attributes:
        num_beams: sequences kept at every step.
        top_k: sample from so many of the likeliest tokens; 0 is from all.
        top_p: sample from the likeliest tokens that make up this share.
        temperature: divides the logits before sampling.
        cache: keep keys and values; without it every step runs the whole input anew.
        seed: of the samples drawn.

    Raises:
        ValueError: a knob out of range, or beams and sampling at once.
    """

    num_beams: int = 1
    top_k: int = 0
    top_p: float = 1.0
    temperature: float = 1.0
    cache: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        expected = {
            "num_beams": (self.num_beams >= 1, "1 or more"),
            "top_k": (self.top_k >= 0, "0 or more; 0 takes all tokens"),
            "top_p": (0 < self.top_p <= 1, "a share in (0, 1]; 1 takes all tokens"),
            "temperature": (self.temperature > 0, "a number above 0"),
        }
        for name, (fits, wanted) in expected.items():
            if not fits:
                raise ValueError(f"{name}={getattr(self, name)}; expected {wanted}")
        if self.samples and self.num_beams > 1:
            raise ValueError(
                f"num_beams={self.num_beams} with top_k, top_p or temperature; take beams or samples"
            )

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn."""
        return (self.top_k, self.top_p, self.temperature) != (0, 1.0, 1.0)

    @property
    def told(self) -> bool:
        """Whether it is other than greedy with a cache, whatever the seed."""
        return self.samples or self.num_beams > 1 or not self.cache

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `generate`."""
        found: dict[str, Any] = {
            "do_sample": self.samples,
            "num_beams": self.num_beams,
            "use_cache": self.cache,
        }
        if self.samples:
            found |= {"top_k": self.top_k, "top_p": self.top_p, "temperature": self.temperature}
        return found

    @contextmanager
    def seeded(self, key: str) -> Iterator[None]:
        """Within it torch draws what the seed and `key` say; afterwards it goes on as if nothing had been drawn."""
        with torch.random.fork_rng(enabled=self.samples):
            if self.samples:
                torch.manual_seed(zlib.crc32(f"{self.seed} {key}".encode()))
            yield


GREEDY = Decoding()
