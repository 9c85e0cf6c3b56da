"""What one thread's call of a model hands from hook to hook."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from .forward import Forward


class Call(threading.local):
    """What one thread's call of the model hands from hook to hook.

    Attributes:
        visual: which columns of the call are visual, from the multimodal body to the decoder.
        forward: the decoder's forward under way.
        refused: whether `Engine._begin` has just raised.
        ids: the call's `input_ids`, if it has any.
        repeated: the `input_ids` of the last forward without a cache, and how many of its columns were the prompt.
    """

    visual: Tensor | None = None
    forward: Forward | None = None
    refused: bool = False
    ids: Tensor | None = None
    repeated: tuple[Tensor, int] | None = None

    def prompt_columns(self, count: int) -> int:
        """Columns of the prompt in a forward of `count` without a cache: `generate` runs the whole input at every step.

        A forward whose input is that of the one before it and one token more goes on with its answer.
        """
        ids, prompt = self.ids, count
        if ids is None:
            self.repeated = None
            return count
        if self.repeated is not None:
            known, before = self.repeated
            if known.shape == (ids.shape[0], count - 1) and torch.equal(ids[:, :-1], known):
                prompt = before
        self.repeated = (ids, prompt)
        return prompt
