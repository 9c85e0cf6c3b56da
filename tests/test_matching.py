"""Equal work: the keep that costs what is asked, and no more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.measure.cost import LayerShape, Shapes
from foveate.measure.matching import flops_ratio_of, keep_for
from foveate.methods import random

SHAPE = Shapes(tuple(LayerShape(1000, 32, 16, 32) for _ in range(6)), 100, 0.0, 4)
SIZES = {"text": 20, "visual": 500, "new_tokens": 10}


@given(st.floats(0.4, 1.0), st.integers(0, 2))
def test_the_keep_costs_at_most_what_is_asked_and_the_next_costs_more(ratio: float, layer: int) -> None:
    keep = keep_for(SHAPE, lambda share: [random(layer=layer, keep=share)], ratio, **SIZES)
    assert flops_ratio_of(SHAPE, [random(layer=layer, keep=keep)], **SIZES) <= ratio
    if keep < 1:
        assert flops_ratio_of(SHAPE, [random(layer=layer, keep=min(1.0, keep + 0.002))], **SIZES) > ratio


def test_a_ratio_out_of_reach_is_refused() -> None:
    with pytest.raises(ValueError, match="keeping nothing"):
        keep_for(SHAPE, lambda share: [random(layer=5, keep=share)], 0.5, **SIZES)
