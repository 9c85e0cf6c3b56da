"""What foveate can do for a model: from its configuration alone, or from its weights too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from packaging.specifiers import SpecifierSet
from PIL import Image

from ..engine.apply import apply
from ..engine.checks import backends, special_masks
from ..models.loaded import Loaded
from ..models.processors import pictures_only, pictures_only_note
from ..versions import TORCH, TRANSFORMERS, versions
from .selfcheck import Check

SIDES = (
    224,
    336,
    448,
    672,
)  # pictures that are asked for their number of tokens where it depends on the picture


@dataclass
class Finding:
    """What is known of a model.

    Attributes:
        name: as it was asked for.
        family: transformers' `model_type`.
        supported: whether `apply` takes it.
        reason: why not, or None.
        facts: of the decoder and the visual tokens, in the order in which they are told.
        checks: of its own weights, if they were run.
        note: why they were not.
    """

    name: str
    family: str
    supported: bool
    reason: str | None
    facts: dict[str, Any]
    checks: list[Check] = field(default_factory=list)
    note: str | None = None

    @property
    def healthy(self) -> bool:
        """Supported, and no check failed."""
        return self.supported and all(check.passed for check in self.checks)


def examine(name: str, loaded: Loaded) -> Finding:
    """Family, decoder, visual tokens, processor, and whether `apply` takes the model, which may be hollow."""
    family = loaded.model.config.model_type
    known = {**_installed(), "class": type(loaded.model).__name__}
    try:
        apply(loaded.model)
        facts = _facts(loaded)
    except ValueError as error:
        return Finding(name, family, False, str(error), known)
    return Finding(name, family, True, None, {**known, **facts})


def _facts(loaded: Loaded) -> dict[str, Any]:
    anatomy = loaded.anatomy
    adapter = anatomy.adapter
    text = anatomy.decoder.config
    kinds = getattr(text, "layer_types", None) or ()
    rope = getattr(text, "rope_parameters", None) or {}
    return {
        "decoder": text.model_type,
        "layers": anatomy.depth,
        "layers with a window": sum(kind == "sliding_attention" for kind in kinds),
        "heads (of keys)": f"{text.num_attention_heads} ({text.num_key_value_heads})",
        "positions": "time, height and width (M-RoPE)" if "mrope_section" in rope else "in a row",
        "masks": "the family's own" if special_masks(adapter, text) else "causal",
        "attention": text._attn_implementation,
        "attention supported": backends(adapter, anatomy.decoder),
        "placeholder ids": list(anatomy.visual_tokens),
        "visual tokens per image": tokens_per_image(loaded),
        "structure tokens": adapter.structure + ("" if adapter.stays else " (may be dropped)"),
        "processor": _processor(loaded.processor),
    }


def _installed() -> dict[str, Any]:
    """The libraries that the engine stands on, and whether these releases were tested."""
    found = versions()
    return {
        library: f"{found[library]} ({'tested' if found[library] in SpecifierSet(known) else 'not tested'}: {known})"
        for library, known in (("transformers", TRANSFORMERS), ("torch", TORCH))
    }


def _processor(processor: Any) -> str:
    """Its class, and whether it is whole."""
    if processor is None:
        return "not loaded"
    return f"{type(processor).__name__}: {pictures_only_note(processor) if pictures_only(processor) else 'whole'}"


def tokens_per_image(loaded: Loaded) -> Any:
    """A number, or a number for each of some sizes of picture, or words."""
    config = loaded.body.config
    fixed = loaded.adapter.per_image(config)
    if fixed is not None:
        return fixed
    if loaded.processor is None:
        return "depends on the picture or its processor"
    found = {}
    for side in SIDES:
        try:
            ids = loaded.inputs([Image.new("RGB", (side, side))], "a")["input_ids"]
        except Exception:  # processors are as many as families; the number is a courtesy
            return "depends on the picture or its processor"
        found[f"{side}x{side}"] = int(
            torch.isin(
                ids.cpu(),
                torch.tensor(loaded.adapter.visual_tokens(config), dtype=torch.long, device="cpu"),
            ).sum()
        )
    counts = set(found.values())
    return counts.pop() if len(counts) == 1 else found
