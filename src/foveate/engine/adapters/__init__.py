"""Which of a model's input tokens are visual: an entry of `table.py` per family."""

from __future__ import annotations

from functools import cache
from typing import Any

from ..refused import REFUSED, WRAPPERS
from .adapter import Adapter
from .table import TABLE


@cache
def adapters() -> dict[str, Adapter]:
    """Every adapter of the table by transformers' `model_type`."""
    return {kind: adapter for adapter in TABLE for kind in adapter.model_types}


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
    if kind in WRAPPERS:
        raise ValueError(f"{kind} is not supported: {WRAPPERS[kind]}.")
    if kind in REFUSED:
        raise ValueError(f"{kind} ({type(model).__name__}) is not supported: {REFUSED[kind]}")
    supported = f"Supported families: {', '.join(sorted(known))}."
    if getattr(config, "vision_config", None) is None:
        raise ValueError(
            f"{type(model).__name__} ({kind}) has no visual tokens to keep. {supported}"
        )
    raise ValueError(
        f"no adapter for the family {kind!r} ({type(model).__name__}). {supported} A new family is one entry in "
        "engine/adapters/table.py (see CONTRIBUTING.md)."
    )


__all__ = ["Adapter", "adapter_for", "adapters"]
