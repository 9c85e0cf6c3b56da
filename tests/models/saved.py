"""Tiny models of every family in folders of their own, as users have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models import tiny
from models.families import FAMILIES
from models.families import model as of_family
from models.processors import PROCESSORS


def model_of(name: str) -> Any:
    """The tiny model of a family."""
    return of_family(name, FAMILIES[name].backends[0]) if name in FAMILIES else tiny.model(name)


def save(name: str, folder: Path) -> Path:
    """Puts model and processor into `folder`, once; returns it."""
    if not (folder / "config.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        model_of(name).save_pretrained(folder)
        PROCESSORS[name]().save(folder)
    return folder
