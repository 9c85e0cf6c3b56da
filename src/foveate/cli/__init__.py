"""The command `foveate`."""

from .app import main

__all__ = ["main"]
