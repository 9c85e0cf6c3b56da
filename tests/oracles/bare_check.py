"""Batches of the tiny models in a bare loop, against the oracle."""

from __future__ import annotations

from typing import Any

import torch

import foveate
from models.tiny import Batch, Layout, batch, cache_in, held, model
from oracles.cases import Case
from oracles.layouts import TOLERANCE, oracles
from oracles.oracle import Oracle


@torch.no_grad()
def check_bare(
    family: str, backend: str, cases: tuple[Case, ...], layout: Layout, steps: int = 3
) -> float:
    """Prefill and decode steps in a bare loop against the oracle; returns how far the plain model is."""
    made, data = model(family, backend), batch(family, layout, backend)
    judges = oracles(family, data, cases, made)
    mask, far = data.inputs["attention_mask"], 0.0
    inputs = {**data.inputs, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    plain = made(**inputs).logits
    with foveate.apply(made, *(c.method for c in cases)) as trace:
        out = made(**inputs, use_cache=True)
        assert out.logits.shape == plain.shape
        for judge, embeds, owners, at, got, before in zip(
            judges, data.embeds, data.image_of, data.columns, out.logits, plain, strict=True
        ):
            want, text = judge.feed(embeds, owners), torch.tensor(owners) < 0
            text[-1] = True  # an image's token too, where it is the last
            torch.testing.assert_close(
                got[at][text], want[text], atol=TOLERANCE[torch.float32], rtol=1e-3
            )
            far = max(far, (before[at][text] - want[text]).abs().max().item())
        for step in range(steps):
            words = torch.full((len(judges), 1), 7 + step)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            places = mask.cumsum(1)[:, -1:] - 1
            out = made(
                input_ids=words,
                attention_mask=mask,
                position_ids=places,
                **held(cache_in(out)),
                use_cache=True,
            )
            for judge, got in zip(judges, out.logits, strict=True):
                want = judge.feed(made.get_input_embeddings()(words[0]), [-1])
                torch.testing.assert_close(got, want, atol=TOLERANCE[torch.float32], rtol=1e-3)
        check_counts(trace, judges, cache_in(out), data)
    return far


def check_counts(trace: foveate.Trace, judges: list[Oracle], cache: Any, data: Batch) -> None:
    """Oracle 3 and 4: cache lengths = schedule = trace; no text token is ever dropped."""
    for row in trace.kept:
        assert row.kept == judges[row.sample].kept[row.call, row.step, row.layer], row
    for index, layer in enumerate(cache.layers):
        columns = layer.slots.columns(len(judges), torch.device("cpu"))
        assert columns.shape[1] == layer.keys.shape[-2] == layer.length
        for judge, row, at in zip(judges, columns, data.columns, strict=True):
            start, width = at.start or 0, data.inputs["input_ids"].shape[1]
            own = {c - start for c in row.tolist() if start <= c < at.stop}
            own |= {c - width + at.stop - start for c in row.tolist() if c >= width}
            want = [c for c in range(judge.columns) if c not in judge.dropped[index]]
            text = [c for c in want if judge.image_of[c] < 0]
            assert own == set(want) and set(text) <= own
