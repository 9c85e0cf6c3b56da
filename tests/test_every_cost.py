"""FLOPs on EVERY family: what tower, projector, decoder and head cost is what torch's own counter counts, exactly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import foveate
from families import FAMILIES, model
from foveate.measure.cost import Cost, cost_of_trace, shapes
from foveate.measure.vision import vision_flops
from foveate.methods import fastv, random
from prompts import prompt, together
from tiny import IMAGE, VIDEO

CPU_SDPA = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
GROUPED = torch.ops.aten._grouped_mm
METHODS = {"plain": (), "fastv": (fastv(layer=2, keep=0.5),), "random": (random(layer=0, keep=0.25),)}
MIXTURES = ("qwen3_vl_moe", "glm4v_moe", "aria")
STEPS = 3


def attention_flops(q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return int(sdpa_flop_count(q, k, v))


def grouped_flops(rows: Any, weights: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Each row goes through the matrix of one expert."""
    return 2 * rows[0] * rows[1] * weights[2]


@contextmanager
def counting(made: Any) -> Iterator[FlopCounterMode]:
    """Counts with frozen weights: the counter hooks onto gradients, which Idefics2's latents have not under no_grad."""
    mapping = {CPU_SDPA: attention_flops, GROUPED: grouped_flops}
    free = [p for p in made.parameters() if p.requires_grad]
    for p in free:
        p.requires_grad_(False)
    try:
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            yield counter
    finally:
        for p in free:
            p.requires_grad_(True)


def inputs(name: str) -> dict[str, Any]:
    """One sample with a picture of every kind that the family takes, videos included."""
    kinds = FAMILIES[name].kinds
    return together([prompt(name, (3, *(part for kind in kinds for part in (kind, 2)), 4), seed=1)])


def ran(name: str, methods: Any, backend: str) -> tuple[int, Cost]:
    """What torch counts in `generate`, and what we compute."""
    made, batch = model(name, backend), inputs(name)
    with foveate.apply(made, *methods) as trace, counting(made) as counter:
        made.generate(
            **batch, max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False, suppress_tokens=[IMAGE, VIDEO]
        )
    return int(counter.get_total_flops()), cost_of_trace(shapes(made), trace, tower=vision_flops(made, batch))


@pytest.mark.parametrize("name", FAMILIES)
def test_generating_costs_what_torch_counts_on_every_family(name: str) -> None:
    seen = set()
    for methods in METHODS.values():
        counted, cost = ran(name, methods, FAMILIES[name].backends[0])
        assert cost.flops == counted
        assert min(cost.tower, cost.prefill, cost.decode, cost.head) > 0
        seen.add(counted)
    assert len(seen) == len(METHODS), "a method changes nothing, so this test could not fail"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_bare_forward_costs_what_torch_counts_on_every_family(name: str) -> None:
    made, batch = model(name, FAMILIES[name].backends[-1]), inputs(name)
    with foveate.apply(made, fastv(layer=2, keep=0.5)) as trace, counting(made) as counter:
        made(**batch)
    cost = cost_of_trace(shapes(made), trace, tower=vision_flops(made, batch), all_logits=True)
    assert cost.flops == counter.get_total_flops() and cost.decode == 0
