"""Which versions of the libraries below are known to work, and which are installed."""

from __future__ import annotations

import torch
import transformers

__version__ = "0.1.0"

# The releases that the whole test suite passed on; pyproject.toml asks pip for the same, and a test compares them.
TORCH = ">=2.11,<2.15"
TRANSFORMERS = ">=5.17,<5.25"


def versions() -> dict[str, str]:
    """The versions that a result is recorded with: of foveate, torch and transformers.

    The build of torch ("+cpu", "+cu130") is left out, so that what one machine records means the same on another.
    """
    return {
        "foveate": __version__,
        "torch": public(torch.__version__),
        "transformers": public(transformers.__version__),
    }


def public(version: str) -> str:
    """A version without its build: "2.14.1+cu130" is 2.14.1."""
    return str(version).partition("+")[0]
