"""A mask of its own for each layer, in decode steps over a static cache.

transformers gives all layers one mask over columns. Each attention module's configuration names
`attend_seen` while such steps run (see `biased.py`), and carries what the layer's slots hold. It is
looked up while a step is compiled, so the compiled step holds a gather and nothing of ours.
"""

from __future__ import annotations

import sys
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..assumptions import AttentionInterface
from ..cache.static import Sight
from .biased import LentConfig

NAME = "foveate_seen"


class SeenConfig(LentConfig):
    """An attention's configuration while decode steps run over a static cache.

    Args:
        attention: of the layer.
        sight: what the layer's slots hold; None where they are all columns in order.
    """

    def __init__(self, attention: Any, sight: Sight | None) -> None:
        AttentionInterface.register(NAME, attend_seen)
        self.sight = sight
        self.attend = _attends(attention)
        super().__init__(attention, NAME)


def attend_seen(
    module: Any,
    query: Float[Tensor, "B H R E"],
    key: Float[Tensor, "B K S E"],
    value: Float[Tensor, "B K S V"],
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "B R H V"], Any]:
    """transformers' attention function for a module whose configuration is a `SeenConfig`.

    Raises:
        RuntimeError: this is no step over the cache.
    """
    config: SeenConfig = module.config
    sight = config.sight
    fits = sight is None or key.shape[2] == sight.columns.shape[1]
    if query.shape[2] != 1 or attention_mask is None or not fits:
        raise RuntimeError(
            "a part of the model was called by itself, after decode steps over a static cache under foveate.apply; "
            "call the whole model"
        )
    mask = attention_mask if sight is None else sight.mask(attention_mask)
    return config.attend(module, query, key, value, mask, **kwargs)


def _attends(attention: Any) -> Any:
    """The function that attends for an attention module; eager ones stand beside its class."""
    name = attention.config._attn_implementation
    if name != "eager":
        return AttentionInterface()[name]
    modules = (sys.modules.get(kind.__module__) for kind in type(attention).__mro__)
    found = (getattr(module, "eager_attention_forward", None) for module in modules)
    return next(function for function in found if function is not None)
