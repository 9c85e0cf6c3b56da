"""A bundled model as a folder of its own, in the weight names of the hub, which vLLM knows."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors.torch import save

from ..files import writing
from .load import BUNDLED, load

WEIGHTS = "model.safetensors"


def export(name: str, folder: Path) -> None:
    """Writes weights, configuration, processor and chat template to `folder`.

    vLLM's LLaVA reads the names that checkpoints on the hub have. transformers reads these and its own. The weights
    are those of `foveate.load`, in float32: smol takes 540 MB.

    Args:
        name: of a bundled model.
        folder: to be made; it may be there if it is empty.

    Raises:
        ValueError: there is no such bundled model, its language model is not installed, or the folder holds files.
        OSError: the folder cannot be written.
    """
    if name not in BUNDLED:
        raise ValueError(f"got the model {name!r}; expected a bundled one: {' or '.join(BUNDLED)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already; expected a new or an empty folder")
    model, processor = load(name)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]  # by which vLLM finds its own class
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    processor.save_pretrained(folder)
    tensors = {
        hub_name(key): value.detach().contiguous()
        for key, value in model.state_dict().items()
        if key != "lm_head.weight"  # both models tie it to the word table
    }
    with writing(folder / WEIGHTS):  # save_file would let nobody but its owner read it
        (folder / WEIGHTS).write_bytes(save(tensors, {"format": "pt"}))


def hub_name(key: str) -> str:
    """The name of a weight of LLaVA's on the hub, where towers lie in a `vision_model`."""
    return re.sub(r"vision_tower\.(?!vision_model)", "vision_tower.vision_model.", key)
