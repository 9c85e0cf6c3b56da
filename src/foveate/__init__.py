"""Foveate: keep only the visual tokens that matter, on stock transformers models."""

from . import methods
from .artefacts.schedules import ScheduleFile, load_schedule
from .artefacts.tuned import TunedFile, load_tuned
from .core.contract import Merge, Needs, Schedule, Score, Weigh
from .core.method import Method
from .core.tokens import Kind, TokenMap
from .core.view import View
from .engine.apply import Handle, apply, disable, enable
from .engine.cache.layer import KeptCache
from .engine.trace import Trace
from .models.load import load
from .models.loaded import Loaded
from .versions import __version__

__all__ = [
    "Handle",
    "KeptCache",
    "Kind",
    "Loaded",
    "Merge",
    "Method",
    "Needs",
    "Schedule",
    "ScheduleFile",
    "Score",
    "TokenMap",
    "Trace",
    "TunedFile",
    "View",
    "Weigh",
    "__version__",
    "apply",
    "disable",
    "enable",
    "load",
    "load_schedule",
    "load_tuned",
    "methods",
]
