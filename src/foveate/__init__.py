"""Foveate: keep only the visual tokens that matter, on stock transformers models."""

from . import methods
from .core.method import Method
from .core.tokens import Kind, TokenMap
from .core.view import View
from .engine.apply import apply
from .engine.cache import KeptCache
from .engine.trace import Trace
from .models.load import load
from .models.loaded import Loaded
from .schedules.store import ScheduleFile, load_schedule

__version__ = "0.1.0"
__all__ = [
    "KeptCache",
    "Kind",
    "Loaded",
    "Method",
    "ScheduleFile",
    "TokenMap",
    "Trace",
    "View",
    "apply",
    "load",
    "load_schedule",
    "methods",
]
