"""What families are crossed with, and how close equals must be."""

from __future__ import annotations

from typing import Any

from foveate.engine.anatomy import anatomy_of

CLOSE = {"atol": 3e-4, "rtol": 1e-3}


CROSSED = (
    "fastv",
    "vtw",
    "random",
    "dyrate",
    "downsample",
    "decay",
    "received",
    "mix",
    "ragged",
    "random+fastv",
)


def layers(made: Any) -> Any:
    return anatomy_of(made).layers
