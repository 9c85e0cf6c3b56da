"""Part of stage 2: where is the object that a question names?

A question's answer tells the model little about *which* object it should have looked at: one bit for "is there a red
star ?", reached only through a look-up that is not learned yet. So the last word of every phrase that names an object
is asked, half-way up the decoder, in which column and row of patches that object's centre lies, or that there is none.
The head is thrown away after training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveate.world.scenes import GRID, SIDE


def patch(x: float, y: float, grid: int = GRID) -> tuple[int, int]:
    """Column and row, among `grid` x `grid` patches, of the pixel at (x, y)."""
    return int(x * grid / SIDE), int(y * grid / SIDE)


def target(where: tuple[float, float] | None, grid: int = GRID) -> tuple[int, int]:
    """Column and row of the patch at pixel position `where`; `grid` twice, the class of the absent, for None."""
    return (grid, grid) if where is None else patch(*where, grid)


class Grounding(nn.Module):
    """The throw-away head: column and row of the named object, from a decoder state.

    Args:
        model: whose decoder is asked.
        layer: whose output is asked, counted from 0; those above remain to compare and to answer.
        grid: visual tokens to a side.
    """

    def __init__(self, model: Any, layer: int, grid: int = GRID) -> None:
        super().__init__()
        self.layer = layer
        self.grid = grid
        self.ground = nn.Linear(model.config.text_config.hidden_size, 2 * (grid + 1))

    def forward(
        self, states: Float[Tensor, "B T D"], wanted: Int[Tensor, "B T 2"]
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Mean cross-entropy over the tokens whose `wanted` is not -100, and the share with both axes right.

        A batch without any such token has a loss of 0.
        """
        named = wanted[..., 0] >= 0
        if not named.any():
            return states.sum() * 0.0, {}
        logits = self.ground(states[named]).unflatten(-1, (2, self.grid + 1))
        loss = F.cross_entropy(logits.flatten(0, 1), wanted[named].flatten())
        right = (logits.argmax(-1) == wanted[named]).all(-1).float().mean()
        return loss, {"ground": right.item()}


@contextmanager
def listening(model: Any, number: int) -> Iterator[list[Tensor]]:
    """Within it, the list that it gives receives the output of decoder layer `number` of every forward pass."""
    heard: list[Tensor] = []
    layer = model.model.language_model.layers[number]
    hook = layer.register_forward_hook(lambda _module, _inputs, output: heard.append(output))
    try:
        yield heard
    finally:
        hook.remove()
