"""What one thread's call of a model hands from hook to hook."""

from __future__ import annotations

import threading
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .forward import Forward

FULL = "full_attention"  # what transformers calls layers without a window


class CallState(threading.local):
    """What one thread's call of the model hands from hook to hook.

    Attributes:
        visual: which columns of the call are visual, from the multimodal body to the decoder.
        forward: the decoder's forward under way.
        refused: whether `Engine._begin` has just raised.
        stepping: whether it is in a decode step over a static cache.
        turn: whether it is this thread's turn, where threads wait for one another.
        ids: the call's `input_ids`, if it has any.
        mask: the call's `attention_mask`, as the caller gave it.
        regular: whether images have the number of tokens that the configuration tells.
        repeated: the `input_ids` of the last forward without a cache, and how many of its columns were the prompt.
    """

    visual: Tensor | None = None
    forward: Forward | None = None
    refused: bool = False
    stepping: bool = False
    turn: bool = False
    ids: Tensor | None = None
    mask: Any = None
    regular: bool = True
    repeated: tuple[Tensor, int] | None = None

    def prompt_columns(self, count: int) -> int:
        """Columns of the prompt in a forward of `count` without a cache: `generate` runs the whole input at every step.

        A forward whose input is that of the one before it and one token more goes on with its answer.
        """
        ids = self.ids
        prompt = count
        if ids is None:
            self.repeated = None
            return count
        if self.repeated is not None:
            known, before = self.repeated
            if known.shape == (ids.shape[0], count - 1) and torch.equal(ids[:, :-1], known):
                prompt = before
        self.repeated = (ids, prompt)
        return prompt


def padding_mask(given: Any, called_with: Any) -> Tensor | None:
    """The 2-D mask of padding: what the decoder was given, or, where the family makes its own of it, the caller's.

    Raises:
        ValueError: the caller gave a mask that is not 2-D.
    """
    for mask in (given, called_with):
        if isinstance(mask, Tensor) and mask.ndim == 2:
            return mask
    if called_with is None:
        return None
    form = (
        f"{called_with.ndim} dimensions"
        if isinstance(called_with, Tensor)
        else f"type {type(called_with).__name__}"
    )
    raise ValueError(
        f"attention_mask has {form}; under foveate.apply give the 2-D mask of padding (B, tokens so far)"
    )


def within(
    given: Tensor | dict[str, Any], columns: int, batch: int
) -> tuple[Any, Bool[Tensor, "B C"] | None]:
    """A mask made for a static cache, up to the columns that there are; and the padding in it.

    Args:
        given: bool or additive (b 1 T M), as wide as the cache is long; or such masks by kinds of layers.
        columns: so far, those of this forward included (C).
        batch: B.

    Raises:
        ValueError: there is no such mask of full attention.
    """
    masks = given if isinstance(given, dict) else {FULL: given}
    full = masks.get(FULL)
    if full is None:  # `generate` made none, for there is no padding: nothing but causal order
        return masks, None
    if not isinstance(full, Tensor) or full.ndim != 4:
        raise ValueError(
            f"attention_mask has masks of {', '.join(masks) or 'nothing'}; expected one of {FULL}, for a static cache"
        )
    cut = {
        name: mask[..., :columns] if isinstance(mask, Tensor) else mask
        for name, mask in masks.items()
    }
    newest = cut[FULL][:, 0, -1]  # it sees all that is real
    real = newest if newest.dtype == torch.bool else newest == 0
    return cut if isinstance(given, dict) else cut[FULL], real.expand(batch, -1)


def placeholders(
    embeds: Float[Tensor, "B T D"], tokens: tuple[int, ...], table: Any
) -> Bool[Tensor, "B T"]:
    """Which embeddings are a placeholder's, where a prompt comes without ids."""
    found = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    for token in tokens:
        if (
            token < table.num_embeddings
        ):  # some families' placeholders lie outside of the vocabulary
            found |= (
                embeds == table(torch.tensor(token, device=embeds.device, dtype=torch.long))
            ).all(-1)
    return found


def regular(config: Any, given: dict[str, Any]) -> bool:
    """Whether this call's images have the number of tokens that the configuration tells."""
    chosen = given.get("vision_feature_select_strategy")
    return chosen is None or chosen == getattr(config, "vision_feature_select_strategy", chosen)
