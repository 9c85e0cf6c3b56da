"""kvpress (NVIDIA): forgets keys and values after each layer's prefill attention, so a prefill computes all it did.

Its ratio is over all entries, text included (SnapKV's window of last tokens stays), in every layer; it is set so that
as many are left as FastV leaves after its layer.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from common import Asked, Done, Runs, build, generation, prompts, serve
from kvpress import KnormPress, SnapKVPress


def contestants(asked: Asked) -> Runs:
    """Plain transformers twice, and two presses."""
    model = build(asked)
    given = prompts(asked, model)
    plain = partial(generation, model, given, asked)
    total = asked.text + asked.visual
    ratio = 1 - (asked.text + asked.kept + 0.5) / total  # it keeps the whole part of the rest

    def pressed(press: Any) -> Done:
        with press(model):
            return plain()

    snap = SnapKVPress(compression_ratio=ratio, window_size=max(1, asked.text // 2))
    return {
        "plain": plain,
        "plain again": plain,
        "kvpress, SnapKV": partial(pressed, snap),
        "kvpress, Knorm": partial(pressed, KnormPress(compression_ratio=ratio)),
    }


if __name__ == "__main__":
    serve(contestants, "kvpress")
