"""A predictor as a folder: ``predictor.safetensors`` (weights) and ``predictor.json`` (what they
are for).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from ..core.predictor import RatePredictor
from ..files import read_text, write_text, writing
from .weighting import UNWEIGHED, Weighting

WEIGHTS = "predictor.safetensors"
CARD = "predictor.json"
BUNDLED = Path(__file__).parent / "bundled"


@dataclass(frozen=True)
class Card:
    """What a predictor is for, and how it came about.

    Attributes:
        model: the name, path or hub id of the model.
        layers: depth of the model's decoder.
        heads: its attention heads.
        layer: the layer before which the predictor decides; features are the attention of the one
            before.
        rates: prune rates that it chooses from.
        response: whether the response's share is a feature.
        ranking: name of the ranking that it was trained with.
        budget: FLOPs of prefill and decode over the unpruned model's, as asked for.
        training: data, seed, metrics and versions.
        decode: whether it decides before decode steps too.
        protect: what its ranking spares while decoding.
        weighting: what kept tokens weighed, and whether they became means, when it was trained. A
            card without weights and means says nothing of it.
    """

    model: str
    layers: int
    heads: int
    layer: int
    rates: Sequence[float]
    response: bool
    ranking: str
    budget: float
    training: dict[str, Any] = field(default_factory=dict)
    decode: bool = True
    protect: str = "nothing"
    weighting: Weighting = UNWEIGHED


def save_pretrained(predictor: RatePredictor, card: Card, folder: Path | str) -> None:
    """Writes both files to `folder`, which is made if it is not there."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous() for k, v in predictor.state_dict().items()}
    with writing(folder / WEIGHTS):
        save_file(tensors, folder / WEIGHTS)
    body = {**asdict(card), "weighting": card.weighting.facts}
    if not body["weighting"]:
        del body["weighting"]
    write_text(folder / CARD, json.dumps(body, indent=1))


def from_pretrained(source: Path | str) -> tuple[RatePredictor, Card]:
    """Loads a predictor.

    Args:
        source: a folder; the name of a bundled predictor, such as ``scenes-0.33``; or a hub id.

    Raises:
        ValueError: there is none, or its files are damaged or do not belong together.
    """
    folder = _folder(str(source))
    try:
        facts = json.loads(read_text(folder / CARD))
        facts["weighting"] = Weighting(**facts.get("weighting", {}))
        card = Card(**{**facts, "rates": tuple(facts["rates"])})
        predictor = RatePredictor(card.heads, card.rates, card.response)
        predictor.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{folder} is no whole predictor ({CARD} and {WEIGHTS}): {first}"
        ) from error
    return predictor.eval(), card


def bundled() -> list[str]:
    """Names of the predictors that come with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{CARD}"))


def _folder(source: str) -> Path:
    for folder in (Path(source), BUNDLED / source):
        if (folder / CARD).is_file():
            return folder
    if source.count("/") == 1 and not source.startswith((".", "/")):
        hub = importlib.import_module("huggingface_hub")
        try:
            return Path(hub.snapshot_download(source, allow_patterns=[WEIGHTS, CARD]))
        except Exception as error:  # the hub's errors have no common base
            raise ValueError(
                f"no predictor {source!r} in a folder of that name or within reach of the hub"
            ) from error
    raise ValueError(
        f"there is no predictor {source!r}; bundled are {', '.join(bundled()) or 'none'}"
    )
