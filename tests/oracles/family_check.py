"""Every family's prompts, run through `generate` and a bare forward, against the masked model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import foveate
from models.families import judge, model
from models.prompts import Prompt, Segment, prompt, together
from models.tiny import IMAGE, VIDEO
from oracles.cases import Case
from oracles.crossing import CLOSE, layers
from oracles.masked import Masked

Layout = tuple[tuple[Segment, ...], ...]
LAYOUTS: dict[str, tuple[Layout, bool]] = {
    "sizes": (((3, "a", 5), (2, "b", 2, "a", 1), (6, "v", 2)), True),
    "right": (((3, "b", 5), (2, "a", 1, "b", 3)), False),
    "words": (((4,), (3, "a", 2)), True),
}


def judged(name: str, cases: tuple[Case, ...], one: Prompt) -> Masked:
    made = judge(name)
    return Masked(
        made, layers(made), one.inputs, one.image_of, [c.chooser for c in cases], one.family.side,
        speaking=[c.speaking for c in cases],
    )  # fmt: skip


def answered(
    made: Any, batch: dict[str, Any], methods: list[Any], steps: int
) -> tuple[Any, foveate.Trace]:
    with foveate.apply(made, *methods) as trace:
        out = made.generate(
            **batch, max_new_tokens=steps, do_sample=False, output_logits=True, return_dict_in_generate=True,
            suppress_tokens=[IMAGE, VIDEO],
        )  # fmt: skip
    return out, trace


@torch.no_grad()
def asked(
    made: Any, batch: dict[str, Any], methods: list[Any]
) -> tuple[Tensor, Tensor, foveate.Trace]:
    """Logits of one bare forward, plain and with the methods."""
    if "mm_token_type_ids" not in batch:  # else the family makes its own
        batch = {**batch, "position_ids": (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)}
    plain = made(**batch).logits
    with foveate.apply(made, *methods) as trace:
        return plain, made(**batch, use_cache=True).logits, trace


def check(name: str, backend: str, cases: tuple[Case, ...], layout: str, steps: int = 3) -> float:
    """`generate` and one bare forward against the oracle; returns how far the plain model is."""
    rows, left = LAYOUTS[layout]
    prompts = [prompt(name, row, seed) for seed, row in enumerate(rows)]
    made, batch = model(name, backend), together(prompts, left=left)
    methods, far = [c.method for c in cases], 0.0
    out, trace = answered(made, batch, methods, steps) if left else (None, foveate.Trace(0))
    plain, logits, bare = asked(made, batch, methods)
    for i, one in enumerate(prompts):
        oracle = judged(name, cases, one)
        want = oracle.feed()
        at = slice(len(logits[i]) - len(one.ids), None) if left else slice(0, len(one.ids))
        words = torch.tensor(one.image_of) < 0
        torch.testing.assert_close(logits[i, at][words], want[words], **CLOSE)
        far = max(far, (plain[i, at][words] - want[words]).abs().max().item())
        for step in range(steps if out else 0):
            torch.testing.assert_close(out.logits[step][i], want[-1], **CLOSE)
            want = oracle.feed(int(out.sequences[i, batch["input_ids"].shape[1] + step]))
        for row in [*trace, *bare]:
            assert row.sample != i or row.kept == oracle.kept[row.step, row.layer], row
    return far
