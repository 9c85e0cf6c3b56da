"""What a score, a schedule and a merge may bring is found wherever they are wrapped."""

from __future__ import annotations

import torch

import foveate
from foveate.core.method import Method
from foveate.core.schedules import Cut
from foveate.core.scores import AnyOf, Even
from foveate.methods import parse
from tiny import Layout, batch, model


def test_raters_are_found_before_the_decoder_wherever_they_are_wrapped() -> None:
    """Raters are chosen before layer 0, where nothing is dropped; without them, nothing would be rated."""
    raters = parse("sparsevlm:recycle=0.0")[0].score
    made, data = model("llava"), batch("llava", Layout(((3, 0, 5), (7, 0, 2))))
    kept = {}
    for name, score in {"alone": raters, "wrapped": AnyOf((raters,)), "mixed": AnyOf((raters, Even()))}.items():
        seen = []
        with torch.no_grad(), foveate.apply(made, Method(score, Cut(2, 5)), watch=seen.append):
            made(**data.inputs)
        kept[name] = seen[-1].visual.tolist()
        assert bool(seen[-1].notes["raters"].any()), name
    assert kept["wrapped"] == kept["alone"] != kept["mixed"]
