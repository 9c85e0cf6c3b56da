"""Settings that are known for a model or a family, each with how far that is measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "presets"
ANY = "*"


@dataclass(frozen=True)
class Preset:
    """A setting.

    Attributes:
        method: its text.
        evidence: where it was measured and what came of it, or that it was not.
        name: the model that it is for, as it is loaded; `ANY` for all of the family.
    """

    method: str
    evidence: str
    name: str = ANY


def presets(family: str, name: str) -> list[Preset]:
    """Those for a model: of its own name first, then of its family, then of any.

    Args:
        family: transformers' `model_type`.
        name: as the model is loaded.
    """
    found = [
        preset
        for kind, settings in sorted(every().items(), key=lambda pair: pair[0] == ANY)
        if kind in (family, ANY)
        for preset in settings
        if preset.name in (name, ANY)
    ]
    return sorted(found, key=lambda preset: preset.name == ANY)


def every() -> dict[str, list[Preset]]:
    """All of them, by family."""
    found: dict[str, list[Preset]] = {}
    for path in sorted(FOLDER.glob("*.json")):
        body = json.loads(path.read_text(encoding="utf-8"))
        found[body["family"]] = [Preset(**row) for row in body["settings"]]
    return found
