"""Shapes in signatures are checked while the tests run."""

from __future__ import annotations

import torch
from hypothesis import settings
from jaxtyping import install_import_hook

CHECKED = ("core", "methods", "schedules", "engine", "measure", "tune", "demo")  # the storeys that have tensors
install_import_hook([f"foveate.{part}" for part in CHECKED], "checker.typechecked")
torch.set_num_threads(1)  # tiny models: a second thread only waits
settings.register_profile("default", max_examples=15, deadline=None, derandomize=True)
settings.register_profile("fuzz", max_examples=2000, deadline=None)
settings.load_profile("default")
