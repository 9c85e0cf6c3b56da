"""A conversation of two turns with a tiny LLaVA, each answered by two words, on one cache."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

import foveate
from foveate.core.method import Method
from foveate.engine.trace import Trace
from models.tiny import Layout, batch, held

CLOSE = {"atol": 2e-4, "rtol": 1e-3}
SAMPLES = ((3, 0, 5), (2, 0, 2), (6, 0, 1, 0, 1))


@dataclass(frozen=True)
class Said:
    """What came of a conversation: the last logits of every forward (B L V), and the trace of its last turn."""

    logits: list[Tensor]
    traces: list[Trace]

    @property
    def trace(self) -> Trace:
        return self.traces[-1]

    def check(self, other: Said) -> None:
        """That another conversation went the same way."""
        assert [trace.kept for trace in self.traces] == [trace.kept for trace in other.traces]
        for mine, theirs in zip(self.logits, other.logits, strict=True):
            torch.testing.assert_close(mine, theirs, **CLOSE)


@dataclass(frozen=True)
class Talk:
    """So many samples, padded on the left in the first turn; pictures in both turns."""

    samples: int
    dtype: torch.dtype = torch.float32

    def run(
        self,
        made: Any,
        *methods: Method,
        later: tuple[Method, ...] | None = None,
        between: Callable[[], Any] | None = None,
    ) -> Said:
        """Talks.

        Args:
            made: a tiny LLaVA.
            methods: applied in the first turn.
            later: applied in the second; None for the same `apply`.
            between: called between the turns.
        """
        layouts = Layout(SAMPLES[: self.samples]), Layout(((2, 0, 4),) * self.samples, seed=4)
        turns = [batch("llava", layout, dtype=self.dtype).inputs for layout in layouts]
        cache, logits, traces = DynamicCache(config=made.config), [], []
        mask = torch.ones(self.samples, 0, dtype=torch.long)
        outer: Any = nullcontext() if later is not None else foveate.apply(made, *methods)
        applied = [methods, later]
        with torch.no_grad(), outer as shared:
            for turn, these in zip(turns, applied, strict=True):
                inner: Any = nullcontext(shared) if later is None else foveate.apply(made, *these)
                with inner as trace:
                    mask = torch.cat([mask, turn["attention_mask"]], 1)
                    given = {"input_ids": turn["input_ids"], "pixel_values": turn["pixel_values"]}
                    out = made(**given, attention_mask=mask, **held(cache))
                    logits.append(out.logits[:, -2:])
                    for word in (7, 8):
                        mask = torch.cat([mask, mask[:, -1:]], 1)
                        ids = torch.full((self.samples, 1), word)
                        out = made(input_ids=ids, attention_mask=mask, **held(cache))
                        logits.append(out.logits)
                traces.append(trace)
                if between is not None and len(traces) == 1:
                    between()
        return Said(logits, traces)
