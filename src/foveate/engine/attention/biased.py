"""How attention is handed a bias that its backend's mask cannot carry, or carries at a price.

transformers looks up the function that attends by the name in the attention module's configuration,
and anyone may register such a function. While a layer with a bias runs, its attention module has a
`BiasedConfig` in place of its configuration. This names `attend_biased`, carries the bias, and is
like the true one in all else. `attend_biased` puts the true one back, then calls the function that
the true one names. Nothing else sees the change: the model's own configuration, other layers and
other models keep their names.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..assumptions import AttentionInterface
from .flash import why_not, widened

NAME = "foveate_biased"


def shares_keys(attention: Any, mask: Tensor) -> bool:
    """Whether sdpa shall take an additive mask as a bias, because several query heads share a key.

    Given a mask, transformers copies such keys and values for every query head. Given a bias, it
    lets torch share them. torch's kernel for CPUs takes both, with the same results to the bit. On
    a GPU that is left to transformers, which copies, since the fast kernels take one of the two.
    """
    shared: int = getattr(attention, "num_key_value_groups", 1)
    return mask.device.type == "cpu" and mask.is_floating_point() and shared > 1


class LentConfig:
    """An attention's configuration while its layer runs with a function of ours; it stands in the
    attention's `config`.

    Args:
        attention: of the layer that is about to run.
        name: of the function, as registered.
    """

    def __init__(self, attention: Any, name: str) -> None:
        self.attention = attention
        self.true = attention.config
        self._attn_implementation = name
        attention.config = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.true, name)

    def put_back(self) -> bool:
        """Gives the attention its configuration again.

        Returns whether this one was still there: nobody used it.
        """
        waiting = self.attention.config is self
        if waiting:
            self.attention.config = self.true
        return waiting


class BiasedConfig(LentConfig):
    """An attention's configuration while its layer runs with a bias.

    Args:
        attention: of the layer that is about to run.
        bias: what is added to scaled products: of each key (B S) under flash attention, of each row
            and key (B 1 R S) under others.
    """

    def __init__(
        self, attention: Any, bias: Float[Tensor, "B S"] | Float[Tensor, "B 1 R S"]
    ) -> None:
        AttentionInterface.register(NAME, attend_biased)
        super().__init__(attention, NAME)
        self.bias = bias


def attend_biased(
    module: Any,
    query: Float[Tensor, "B H R E"],
    key: Float[Tensor, "B K S E"],
    value: Float[Tensor, "B K S V"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "B R H V"], Any]:
    """transformers' attention function for a module whose configuration is a `BiasedConfig`.

    Raises:
        ValueError: flash attention could not be right with a bias.
    """
    config: BiasedConfig = module.config
    config.put_back()
    name = str(module.config._attn_implementation)
    attend = AttentionInterface()[name]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if name == "sdpa":
        # The table is causal already. Otherwise transformers would make it so for the first rows.
        given = {**kwargs, "is_causal": False, "position_bias": config.bias}
        out = attend(module, query, key, value, None, scaling=scaling, **given)
        return out[0], out[1]
    if not name.startswith("flash"):
        # Flex attention reads this as table[b, h, i, j], and a 4-D mask as table[b][0][i][j].
        # Compiled for a CPU, the second form writes where it must not (torch 2.13), so the mask
        # comes as a table of every head.
        table = config.bias.expand(-1, query.shape[1], -1, -1)
        out = attend(
            module, query, key, value, None, scaling=scaling, position_bias=table, **kwargs
        )
        return out[0], out[1]
    reason = why_not(query.shape[-1], kwargs.get("softcap"))
    if reason is not None:
        raise ValueError(
            "this cache holds tokens that speak for others which have left, so attention needs a bias; "
            f"{reason}"
        )
    wide = widened(query, key, value, config.bias, scaling)
    out = attend(module, *wide, attention_mask, scaling=scaling, **kwargs)
    return out[0][..., : value.shape[-1]], out[1]
