"""One file per family: where a model's decoder is, and which of its input tokens are visual."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

from ..refused import REFUSED
from .adapter import Adapter, decoder_of


@cache
def adapters() -> dict[str, Adapter]:
    """Every adapter of this package by transformers' `model_type`."""
    found: dict[str, Adapter] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name != "adapter":
            adapter: Adapter = importlib.import_module(f"{__name__}.{module.name}").ADAPTER
            found.update(dict.fromkeys(adapter.model_types, adapter))
    return found


def adapter_for(model: Any) -> Adapter:
    """The adapter of the model's family.

    Raises:
        ValueError: the model has no visual tokens, or is of a family without an adapter.
    """
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    known = adapters()
    if kind in known:
        return known[kind]
    if kind in REFUSED:
        raise ValueError(f"{kind} ({type(model).__name__}) is not supported: {REFUSED[kind]}")
    supported = f"Supported families: {', '.join(sorted(known))}."
    if getattr(config, "vision_config", None) is None:
        raise ValueError(f"{type(model).__name__} ({kind}) has no visual tokens to keep. {supported}")
    raise ValueError(
        f"no adapter for the family {kind!r} ({type(model).__name__}). {supported} A new family is one file in "
        "engine/adapters/ (see CONTRIBUTING.md)."
    )


__all__ = ["Adapter", "adapter_for", "adapters", "decoder_of"]
