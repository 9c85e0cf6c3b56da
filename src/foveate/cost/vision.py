"""FLOPs of the vision tower and the projector of a live model, for the pictures that it is really
given.

There are two figures for this work, and this says which is used where.

**Live** (this file): torch's own counter runs along with the model's real forward up to its decoder. It is exact for
every family, with windows, tiles, any resolution, resamplers, convolutions or videos, and asks
nobody how many pictures there are. All that counts a run of a model uses it: `generate`, `demo` and
`bench`.

**Closed form** (`engine.sizes.TowerShape.flops`): from a configuration and the size of a picture, where there is no
model to run, for the families that `pictures.picture` knows. The commands `cost` and `advise` use
it.

`eval`, `search` and `train dyrate` compare work that schedules change; the tower is in none of
their figures.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from ..engine.anatomy import Anatomy, anatomy_of
from ..engine.until import until

_TEXT = (
    "input_ids",
    "attention_mask",
    "position_ids",
    "token_type_ids",
    "mm_token_type_ids",
    "labels",
)
_KNOWN: WeakKeyDictionary[nn.Module, dict[Hashable, float]] = WeakKeyDictionary()


class _Untold(ModuleTracker):
    """In place of the counter's bookkeeping of which module is running: only the sum is wanted."""

    def __enter__(self) -> _Untold:
        return self

    def __exit__(self, *args: object) -> None:
        pass


def vision_flops(model: Any, inputs: Mapping[str, Any]) -> float:
    """FLOPs of everything that runs before the decoder on one call of the model: towers,
    projectors, resamplers.

    The model runs once, up to its decoder, for all inputs whose vision part has the same shapes,
    grids and sizes.

    Args:
        model: of any family, with weights, outside of `foveate.apply`.
        inputs: of the model, as its processor gives them, on its device; 0 where they have no
            pictures.
    """
    seen = {
        name: value
        for name, value in inputs.items()
        if name not in _TEXT and isinstance(value, Tensor)
    }
    if not seen:
        return 0.0
    anatomy = anatomy_of(model)
    known = _KNOWN.setdefault(anatomy.body, {})
    key = (anatomy.vision_size, *((name, _form(value)) for name, value in sorted(seen.items())))
    if key not in known:
        known[key] = _counted(anatomy, inputs)
    return known[key]


def _form(value: Tensor) -> Hashable:
    """All of an input that the vision part's FLOPs can depend on.

    Grids, sizes and masks are numbers that say how much is run. Of pixels it is their shape, and
    which pictures are empty: Idefics and its kin fill a batch with black pictures, which they do
    not run.
    """
    if not value.is_floating_point():
        return tuple(value.shape), value.cpu().numpy().tobytes()
    pictures = value.flatten(-3).any(-1) if value.ndim > 3 else value.new_ones(0, dtype=torch.bool)
    return tuple(value.shape), pictures.cpu().numpy().tobytes()


def _counted(anatomy: Anatomy, inputs: Mapping[str, Any]) -> float:
    counter = FlopCounterMode(display=False, custom_mapping={_ON_CPU: _attention})
    # its own tracker asks every module for gradients, which some have not (Idefics2)
    counter.mod_tracker = _Untold()
    with until(anatomy.decoder), torch.no_grad(), _countable(anatomy.vision), counter:
        anatomy.model(**inputs)
    return float(counter.get_total_flops())


@contextmanager
def _countable(vision: Iterable[nn.Module]) -> Iterator[None]:
    """Towers on sdpa meanwhile, if they are on flash attention: torch's counter does not know its
    kernels.
    """
    configs: dict[int, Any] = {
        id(m.config): m.config for part in vision for m in part.modules() if hasattr(m, "config")
    }
    before = {key: getattr(config, "_attn_implementation", None) for key, config in configs.items()}
    flash = [key for key, name in before.items() if str(name).startswith("flash")]
    for key in flash:
        configs[key]._attn_implementation = "sdpa"
    try:
        yield
    finally:
        for key in flash:
            configs[key]._attn_implementation = before[key]


_ON_CPU = (
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
)  # which torch's counter leaves out


def _attention(
    query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    """Products with keys and with values; torch's own count refuses grouped heads before 2.13."""
    batch, heads, rows, width = query
    return int(2 * batch * heads * rows * key[-2] * (width + value[-1]))
