"""Which visual tokens are alive at each step of an answer (DyRate, Figure 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from ..core.method import Method
from ..core.scores import Even
from ..core.tokens import Kind
from ..core.view import View
from ..engine.apply import apply
from ..engine.trace import Trace


@dataclass(frozen=True)
class KeptSets:
    """The visual tokens of the prompt, in order, at each step of one answer.

    Attributes:
        reached: how many layers attended to each token. A layer holds no token that a layer before
            it has dropped, so this says for every layer what it kept.
        layers: depth of the decoder.
        grid: (rows, columns) of each image's tokens, or None where they form no grid.
        answer: token ids of the answer; step t ran with its first t words known.
        trace: of the run; its last method is the onlooker that noted the rest.
    """

    reached: Int[np.ndarray, "S N"]
    layers: int
    grid: tuple[int, int] | None
    answer: list[int]
    trace: Trace

    @property
    def alive(self) -> Bool[np.ndarray, "S N"]:
        """The tokens that the last layer attended to."""
        return self.reached == self.layers


@torch.inference_mode()
def kept_sets(
    model: nn.Module, inputs: Mapping[str, Any], max_new_tokens: int, *methods: Method | str
) -> KeptSets:
    """Records one greedy answer.

    Args:
        model: of a supported family, as for `apply`.
        inputs: what the processor made of one prompt.
        max_new_tokens: longest answer.
        methods: applied meanwhile.

    Raises:
        ValueError: `inputs` hold more than one sample, or no visual tokens.
    """
    if inputs["input_ids"].shape[0] != 1:
        raise ValueError(f"inputs hold {inputs['input_ids'].shape[0]} samples; give one at a time")
    steps: list[np.ndarray] = []
    grids: list[tuple[int, int] | None] = []

    def begin(view: View) -> None:
        if view.layer == 0:
            columns = view.tokens.are(Kind.IMAGE)[0].nonzero()[:, 0]
            steps.append(np.zeros(len(columns), dtype=np.int64))
            grids.append(view.tokens.grid)

    def look(view: View) -> Int[Tensor, " B"]:
        columns = view.tokens.are(Kind.IMAGE)[0].nonzero()[:, 0]
        steps[-1] += torch.isin(columns, view.visual[0][view.mask[0]]).cpu().numpy()
        return view.alive

    # The last method sees what the others have decided before each layer. It keeps all itself, so
    # it never ranks. Where nothing is left it is not asked, so `begin` makes each step's row.
    onlooker = Method(Even(), look, name="onlooker")
    chosen: Any = model
    with apply(model, *methods, onlooker, watch=begin) as trace:
        out = chosen.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    if not steps or not steps[0].size:
        raise ValueError("the prompt holds no visual tokens")
    answer = out[0, inputs["input_ids"].shape[1] :].tolist()
    return KeptSets(np.stack(steps), trace.layers, grids[0], answer, trace)
