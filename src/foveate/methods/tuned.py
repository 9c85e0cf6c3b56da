"""Tuned setting: chosen and certified by `foveate tune`."""

from __future__ import annotations

from pathlib import Path

from ..artefacts.tuned import NOTHING, SEARCHED, TunedFile, load_tuned
from ..core.contract import Schedule
from ..core.guard import FEATURES, ForModel, Guarded
from ..core.knobs import checked
from ..core.method import SOON, Method
from ..core.schedules import PerLayer
from ..core.scores import RANKINGS
from . import spec
from .schedule import schedule


@checked
def tuned(path: str | TunedFile) -> Method:
    """The setting that `foveate tune` chose for a model and its data.

    Paper: "Learn then Test: Calibrating Predictive Algorithms to Achieve Risk Control",
    Angelopoulos et al., arXiv 2110.01052, for the certificate; what is chosen from are the other
    methods, each with its own paper.

    Where: inside the language model; as chosen.

    Deviations: none.

    Args:
        path: the JSON file that `foveate tune` wrote, the name of a bundled one, such as scenes, or
            what `foveate.load_tuned` read.

    Raises:
        ValueError: no such file, or no tuned setting in it. At `apply`: the model has another depth
            or is of another family.
    """
    found = path if isinstance(path, TunedFile) else load_tuned(path)
    depth = int(found.model["layers"])
    inner = _method(found)
    kept: Schedule = inner.schedule
    if found.limits:
        limits = tuple(found.limits[name] for name in FEATURES)
        kept = Guarded(kept, limits, first_of(inner, depth))
    kept = ForModel(kept, str(found.model["family"]), depth)
    name = f"tuned:{'given' if isinstance(path, TunedFile) else Path(path).name}"
    return Method(inner.score, kept, inner.merge, inner.within, name, inner.weigh)


def first_of(method: Method, depth: int) -> int:
    """The first layer of a decoder before which a method may drop tokens."""
    acts = (layer for layer in range(depth) if any(method.drops(layer, s) for s in range(SOON)))
    return next(acts, 0)


def _method(found: TunedFile) -> Method:
    """The setting without its checks."""
    if found.method == NOTHING:
        return Method(RANKINGS["even"], PerLayer((1.0,) * int(found.model["layers"])))
    if found.method == SEARCHED and found.schedule is not None:
        return schedule(found.schedule)
    made = spec.parse(found.method)
    if len(made) != 1:
        raise ValueError(f"the tuned setting {found.method!r} is several methods; expected one")
    return made[0]
