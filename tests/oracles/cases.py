"""ONE LINE PER METHOD: the library's method beside its definition, written naively for one sample."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from torch import Tensor

from foveate import Kind, ScheduleFile, View, methods
from foveate.artefacts.tuned import TunedFile
from foveate.core.contract import Schedule
from foveate.core.method import Method
from foveate.core.scores import (
    RANKINGS,
    Accumulated,
    Even,
    Instruction,
    LastQuery,
    LayersMax,
    Received,
)
from foveate.methods.dyrate.sparing import Sparing
from oracles import vision_cases as vision
from oracles import zoo
from oracles.choosers import (
    by_accumulated,
    by_any,
    by_diverse,
    by_instruction,
    by_last,
    by_layers,
    by_received,
    by_sparing,
    by_tower,
    decaying,
    downsample,
    dyrate,
    fastv,
    per_layer,
    ragged_chooser,
    random,
    tiny_predictor,
    vtw,
)
from oracles.oracle import Chooser
from oracles.speaking import Speaking


@dataclass(frozen=True)
class Case:
    """A method and its naive twin.

    `content_free`: the choice does not hang on rounding. `slow`: the rarer crossings are for `make test-slow`.
    `speaking`: how its kept tokens speak for the dropped, if they do.
    """

    method: Method
    chooser: Chooser
    content_free: bool = False
    slow: bool = False
    speaking: Speaking | None = None

    def spoken(self, speaking: Speaking) -> Case:
        """The same, with kept tokens that speak for the dropped."""
        method = self.method.weighted(**speaking.knobs())  # type: ignore[arg-type]
        return replace(self, method=method, speaking=speaking)


@dataclass(frozen=True)
class Decay(Schedule):
    """Test schedule: at every step t the layer keeps total / (t + 2); a stand-in for decode-time methods."""

    layer: int

    def acts(self, layer: int, step: int) -> bool:
        return layer == self.layer

    def __call__(self, view: View) -> Tensor:
        return view.total // (view.step + 2)


TUNED = TunedFile("fastv:layer=1,keep=0.5", {"family": "", "layers": 4, "hidden": 0}, {})
SEARCHED = ScheduleFile((1.0, 0.7, 0.7, 0.3), "last", "sample", {"layers": 4})


def ragged(view: View) -> Tensor:
    """Test schedule, a plain function: each layer keeps two fewer than there are, samples differ by content."""
    more = (view.total * 7 + view.tokens.are(Kind.SYSTEM).sum(1) * 3) % 4
    return (view.alive - 2 - more).clamp(min=1) if view.step == 0 else view.alive


LISTED: dict[str, Case] = {
    "fastv": Case(methods.fastv(layer=1, keep=0.5), fastv(1, 0.5)),
    "vtw": Case(methods.vtw(layer=2), vtw(2), content_free=True),
    "random": Case(methods.random(layer=0, keep=0.4, seed=3), random(0, 0.4, 3), content_free=True),
    "dyrate": Case(methods.dyrate(tiny_predictor(), layer=1), dyrate(1)),
    "schedule": Case(methods.schedule(SEARCHED), per_layer(SEARCHED.keep)),
    "tuned": Case(methods.tuned(TUNED), fastv(1, 0.5), slow=True),
    "downsample": Case(
        methods.downsample(layer=0, keep=0.25), downsample(0, 0.25), content_free=True
    ),
    "divprune": Case(methods.divprune(keep=0.5), vision.divprune(0.5), slow=True),
    "cdpruner": Case(methods.cdpruner(keep=0.3), vision.cdpruner(0.3), slow=True),
    "visionzip": Case(
        methods.visionzip(keep=0.4, contextual=0.5), vision.visionzip(0.4, 0.5, False), slow=True
    ),
    "prumerge": Case(methods.prumerge(), vision.prumerge(False, False), slow=True),
    "prumerge_plus": Case(methods.prumerge_plus(), vision.prumerge(True, False), slow=True),
    "vscan1": Case(methods.vscan1(keep=0.4, windows=2), vision.vscan1(0.4, 0.5, 2), slow=True),
    "vispruner": Case(methods.vispruner(keep=0.4), vision.vispruner(0.4, 0.5), slow=True),
    "flowcut": Case(methods.flowcut(keep=0.4), vision.flowcut(0.4, (0, 1, 1, 1)), slow=True),
    "tome": Case(methods.tome(keep=0.3, rounds=3), vision.matching(0.3, 3, -1), slow=True),
    "dymu": Case(methods.dymu(threshold=0.3), vision.matching(None, None, 0.3), slow=True),
    "pact": Case(
        methods.pact(layer=1, important=0.6, cutoff=0.5),
        vision.pact(1, 0.6, 0.5),
        slow=True,
        speaking=Speaking("clusters"),
    ),
    "pdrop": Case(methods.pdrop(keep=0.6), zoo.pdrop(0.6, [1, 2, 3], 0), slow=True),
    "vscan2": Case(methods.vscan2(keep=0.4), zoo.vscan2(0.4), slow=True),
    "dart": Case(methods.dart(1, 0.6, pivots=2, text_pivots=2), zoo.dart(1, 0.6, 2, 2), slow=True),
    "sparsevlm": Case(
        methods.sparsevlm(layers=(1, 3), scale=0.6),
        zoo.sparsevlm([1, 3], None, 0.6, 0.3, summed=False),
        slow=True,
    ),
    "fitprune": Case(
        methods.fitprune((1.0, 0.8, 0.5, 0.3)), zoo.fitprune([1.0, 0.8, 0.5, 0.3]), slow=True
    ),
    "psigmoid": Case(methods.psigmoid(0.6, 1.5, 0.1, 1), zoo.psigmoid(0.6, 1.5, 0.1, 1), slow=True),
    "st3": Case(methods.st3(1, 2, 0.5, 0.25, 4, 2), zoo.st3(1, 2, 0.5, 0.25, 4, 2), slow=True),
}
EXTRA: dict[str, Case] = {
    "decay": Case(Method(LastQuery(), Decay(2), name="decay"), decaying(2, by_last)),
    "instruction": Case(Method(Instruction(), Decay(2)), decaying(2, by_instruction)),
    "received": Case(Method(Received(), Decay(1)), decaying(1, by_received)),
    "layers": Case(Method(LayersMax(), Decay(3)), decaying(3, by_layers)),
    "accumulated": Case(Method(Accumulated(), Decay(1)), decaying(1, by_accumulated)),
    "dyrate, deeper": Case(methods.dyrate(tiny_predictor(), layer=1, deeper=0.5), dyrate(1, 6)),
    "mix": Case(Method(RANKINGS["mix"], Decay(1)), decaying(1, by_any)),
    "sparing": Case(Method(Sparing(LastQuery(), LastQuery()), Decay(1)), decaying(1, by_sparing)),
    "tower": Case(Method(RANKINGS["tower"], Decay(0)), decaying(0, by_tower), slow=True),
    "diverse": Case(Method(RANKINGS["diverse"], Decay(0)), decaying(0, by_diverse), slow=True),
    "dyrate before layer 0": Case(
        Method(LastQuery(0), methods.dyrate(tiny_predictor(), layer=0, ranking="even").schedule),
        dyrate(0),
        slow=True,
    ),
    "pdrop before": Case(
        methods.pdrop(layers=(2, 3), rank="before"), zoo.pdrop(0.5, [2, 3], 1), slow=True
    ),
    "vscan2 own": Case(methods.vscan2(keep=0.4, rank="own"), zoo.vscan2(0.4, 0), slow=True),
    "sparsevlm table": Case(
        methods.sparsevlm((0.75, 0.5, 0.3), cluster="sum"),
        zoo.sparsevlm([1, 2, 3], [0.75, 0.5, 0.3], 0, 0.3, summed=True),
        slow=True,
    ),
    "ragged": Case(Method(Even(), ragged, name="ragged"), ragged_chooser, content_free=True),
    "visionzip's sums": Case(
        methods.visionzip(keep=0.4, contextual=0.3, merging="sum"),
        vision.visionzip(0.4, 0.3, True),
        slow=True,
    ),
    "prumerge's neighbours": Case(
        methods.prumerge(merging="neighbours"), vision.prumerge(False, True), slow=True
    ),
}
CASES = LISTED | EXTRA
STACKS: dict[str, tuple[Case, ...]] = {
    "random+fastv": (LISTED["random"], LISTED["fastv"]),
    "downsample+decay": (LISTED["downsample"], EXTRA["decay"]),
    "visionzip+fastv": (LISTED["visionzip"], LISTED["fastv"]),
    "schedule+dyrate": (LISTED["schedule"], LISTED["dyrate"]),
    "vscan2+st3": (LISTED["vscan2"], LISTED["st3"]),
}
METHODS = {**{name: (case,) for name, case in CASES.items()}, **STACKS}


def crossed(methods: Iterable[str], usual: Callable[..., bool], *axes: Iterable[str]) -> list[Any]:
    """Parameters: every method with every place on the axes; of slow methods the `usual` places alone by default."""
    found = []
    for method, *place in itertools.product(methods, *axes):
        rare = any(case.slow for case in METHODS[method]) and not usual(*place)
        found.append(pytest.param(method, *place, marks=[pytest.mark.slow] if rare else []))
    return found
