"""VTW's search of its layer."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate.tune import find_vtw_layer
from models.tiny import LAYERS, batch, model
from oracles.layouts import LAYOUTS


def test_it_finds_the_first_layer_under_the_threshold() -> None:
    made, data = model("llava"), batch("llava", LAYOUTS["left"])
    found = find_vtw_layer(made, [data.inputs], threshold=0.0)
    assert set(found.divergence) == set(range(1, LAYERS)) and found.samples == 3
    assert found.layer is None and min(found.divergence.values()) > 0
    with torch.no_grad():
        plain = made(**data.inputs).logits[:, -1].log_softmax(-1)
        with foveate.apply(made, foveate.methods.vtw(layer=2)):
            cut = made(**data.inputs).logits[:, -1].log_softmax(-1)
    want = (plain.exp() * (plain - cut)).sum(-1).mean().item()
    assert found.divergence[2] == pytest.approx(want, rel=1e-4)
    loose = find_vtw_layer(made, [data.inputs], threshold=found.divergence[2])
    passing = [k for k, v in sorted(found.divergence.items()) if v <= found.divergence[2]]
    assert loose.layer == passing[0]


def test_bad_input_is_refused() -> None:
    made = model("llava")
    with pytest.raises(ValueError, match="no batches"):
        find_vtw_layer(made, [])
    with pytest.raises(ValueError, match="0 to 3"):
        find_vtw_layer(made, [batch("llava", LAYOUTS["one"]).inputs], first=9)
