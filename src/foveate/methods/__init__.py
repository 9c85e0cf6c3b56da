"""One module per method: the module's name is the factory's name is the name on the command line.

The factories are imported by name, so that editors and type checkers see them:
`foveate.methods.fastv` is the factory, while `from foveate.methods.fastv import ...` reaches into
its module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..core.method import Method
from .cdpruner import cdpruner as cdpruner
from .dart import dart as dart
from .divprune import divprune as divprune
from .downsample import downsample as downsample
from .dymu import dymu as dymu
from .dyrate import dyrate as dyrate
from .fastv import fastv as fastv
from .fitprune import fitprune as fitprune
from .flowcut import flowcut as flowcut
from .pact import pact as pact
from .pdrop import pdrop as pdrop
from .prumerge import prumerge as prumerge
from .prumerge_plus import prumerge_plus as prumerge_plus
from .psigmoid import psigmoid as psigmoid
from .random import random as random
from .schedule import schedule as schedule
from .sparsevlm import sparsevlm as sparsevlm
from .spec import as_methods, knobs, parse, score_of
from .st3 import st3 as st3
from .tome import tome as tome
from .tuned import tuned as tuned
from .visionzip import visionzip as visionzip
from .vispruner import vispruner as vispruner
from .vscan1 import vscan1 as vscan1
from .vscan2 import vscan2 as vscan2
from .vtw import vtw as vtw

Factory = Callable[..., Method]

__all__ = [
    "Factory",
    "as_methods",
    "cdpruner",
    "dart",
    "divprune",
    "downsample",
    "dymu",
    "dyrate",
    "factories",
    "fastv",
    "fitprune",
    "flowcut",
    "knobs",
    "pact",
    "parse",
    "pdrop",
    "prumerge",
    "prumerge_plus",
    "psigmoid",
    "random",
    "schedule",
    "score_of",
    "sparsevlm",
    "st3",
    "tome",
    "tuned",
    "visionzip",
    "vispruner",
    "vscan1",
    "vscan2",
    "vtw",
]

_LISTED: tuple[Factory, ...] = (
    cdpruner,
    dart,
    divprune,
    downsample,
    dymu,
    dyrate,
    fastv,
    fitprune,
    flowcut,
    pact,
    pdrop,
    prumerge,
    prumerge_plus,
    psigmoid,
    random,
    schedule,
    sparsevlm,
    st3,
    tome,
    tuned,
    visionzip,
    vispruner,
    vscan1,
    vscan2,
    vtw,
)


def factories() -> dict[str, Factory]:
    """Every method of this package by name."""
    return {factory.__name__: factory for factory in _LISTED}


if not TYPE_CHECKING:  # else type checkers would believe in every name

    def __getattr__(name: str) -> Factory:
        raise AttributeError(f"no method {name!r}; there are {', '.join(factories())}")
