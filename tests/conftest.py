"""Shapes in signatures are checked while the tests run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# the storeys that have tensors
CHECKED = (
    "core",
    "artefacts",
    "methods",
    "engine",
    "models",
    "world",
    "cost",
    "timing",
    "eval",
    "inspect",
    "doctor",
    "tune",
)
install_import_hook([f"foveate.{part}" for part in CHECKED], "checker.typechecked")
torch.set_num_threads(1)  # tiny models: a second thread only waits
settings.register_profile("default", max_examples=15, deadline=None, derandomize=True)
settings.register_profile("fuzz", max_examples=2000, deadline=None)
settings.load_profile("default")


@pytest.fixture(scope="session")
def scenes() -> Any:
    """The bundled model and its processor."""
    from foveate.models.load import load  # noqa: PLC0415

    return load("scenes")


@pytest.fixture(scope="session")
def examples() -> Any:
    """Six examples to train on."""
    from foveate.tune.examples import scene_examples  # noqa: PLC0415

    return scene_examples("train", 6).rows


@pytest.fixture(scope="session")
def data() -> Any:
    """Three examples to search on, and two held out."""
    from foveate.tune.examples import scene_examples  # noqa: PLC0415
    from foveate.tune.search.search import Data  # noqa: PLC0415

    rows = scene_examples("train", 5, kinds=("position", "shape")).rows
    return Data("scenes", rows[:3], rows[3:])


WANTS = "its picture processor wants torchvision there"
OLD = (  # (part of a test's file, part of its name, why it cannot run on transformers before 5.23)
    (
        "test_every_cost",
        "aria",
        "Aria's layers do not say how many experts run: their cost is refused",
    ),
    ("test_every_cost", "nobody_says", "it takes away what Aria's layers do not say there"),
    (
        "test_every_cost",
        "knows_every_family[perception_lm]",
        "PerceptionLM cannot be built without timm",
    ),
    (
        "test_cost",
        "without_a_cache_every_step",
        "without a cache the tower runs at every step there",
    ),
    ("test_loading", "module_without_sdpa", "the module takes sdpa there"),
    ("test_loading", "only_text", WANTS),  # these two are of SmolVLM
    ("test_loading", "saved_again", WANTS),
    *(
        (file, family, WANTS)
        for file in ("commands", "test_places")
        for family in ("smolvlm", "idefics2", "idefics3", "ovis2")
    ),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what an old transformers lacks; see `make test-oldest`."""
    from models.tiny import NEWEST  # noqa: PLC0415 - after the import hook

    for item in [] if NEWEST else items:
        for file, name, reason in OLD:
            if file in str(item.path) and name in item.name:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the terminal so many columns wide.

    Rich looks at COLUMNS when a console is made, if it is set then, as pytest-xdist does.
    """
    from foveate.cli.output import console, errors  # noqa: PLC0415

    def wide(columns: int) -> None:
        monkeypatch.setenv("COLUMNS", str(columns))
        for one in (console, errors):
            monkeypatch.setattr(one, "_width", columns)

    return wide
