"""Writing a trained model the way transformers loads it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from foveate.models.smol.assemble import LEARNED, learned_parts
from foveate.models.smol.base import HUB
from foveate.versions import versions
from lab.model import build_processor
from lab.smol import lora
from lab.training import Recipe


def export(model: Any, folder: Path, recipe: Recipe, start: Path | None = None) -> None:
    """Writes what a run made, and the recipe with the libraries' versions, to `folder`.

    Of ``scenes`` this is a whole model, as transformers loads it; of ``smol`` only what we trained. If the run went on
    from the finished model in `start`, that one's facts go with it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    {"scenes": _export_scenes, "smol": _export_smol}[recipe.model](model, folder)
    facts: dict[str, Any] = {
        "recipe": asdict(recipe),
        **versions(),
    }
    if start is not None and (start / "training.json").is_file():
        facts["before"] = json.loads((start / "training.json").read_text())
    (folder / "training.json").write_text(json.dumps(facts, indent=1))


def _export_scenes(model: Any, folder: Path) -> None:
    """Weights (float16 in safetensors), configuration and processor.

    The configuration says float32, so that transformers' `from_pretrained` computes in float32: half precision is
    slow on most CPUs, and the file is small enough.
    """
    model.config.dtype = torch.float32
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tensors = {
        k: v.detach().cpu().half().contiguous()
        for k, v in model.state_dict().items()
        if k != "lm_head.weight"
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    build_processor().save_pretrained(folder)


def _export_smol(model: Any, folder: Path) -> None:
    save_file(learned_parts(model, lora.update(model)), folder / LEARNED, {"language model": HUB})
