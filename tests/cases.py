"""ONE LINE PER METHOD: the library's method beside its definition, written naively for one sample."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

import vision_cases as vision
import zoo
from foveate import Kind, ScheduleFile, View, methods
from foveate.core.foresight import Sparing
from foveate.core.method import Method
from foveate.core.predictor import RatePredictor
from foveate.core.scores import RANKINGS, Accumulated, Even, Instruction, LastQuery, LayersMax, Received
from oracle import Chooser, Situation


@dataclass(frozen=True)
class Case:
    """A method and its naive twin.

    `content_free`: the choice does not hang on rounding. `slow`: the rarer crossings are for `make test-slow`.
    """

    method: Method
    chooser: Chooser
    content_free: bool = False
    slow: bool = False


def half_up(total: int, keep: float) -> int:
    return math.floor(total * keep + 0.5)


def fastv(layer: int, keep: float) -> Chooser:
    def choose(s: Situation) -> list[int]:
        if s.layer != layer or s.step:
            return s.alive
        share = s.attention(s.newest).mean(0)
        ranked = sorted(s.alive, key=lambda c: (-share[c].item(), c))
        return ranked[: half_up(s.total, keep)]

    return choose


def vtw(layer: int) -> Chooser:
    return lambda s: [] if s.layer == layer and not s.step else s.alive


def random(layer: int, keep: float, seed: int) -> Chooser:
    def value(number: int) -> int:
        x = number * 2654435761 + (seed + 1) * 40503 * 65537
        for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39), (15, 1)):
            x &= 2**32 - 1
            x = (x ^ (x >> shift)) * factor
        return x & 0xFFFFFF

    def choose(s: Situation) -> list[int]:
        if s.layer != layer or s.step:
            return s.alive
        visual = [c for c, image in enumerate(s.image_of) if image >= 0]
        return sorted(s.alive, key=lambda c: (-value(visual.index(c)), c))[: half_up(s.total, keep)]

    return choose


def bayer(side: int) -> list[list[int]]:
    """Bayer's matrix by its recursion; side a power of two."""
    if side == 1:
        return [[0]]
    small = bayer(side // 2)
    out = [[0] * side for _ in range(side)]
    for r in range(side):
        for c in range(side):
            out[r][c] = (
                4 * small[r % (side // 2)][c % (side // 2)] + [[0, 2], [3, 1]][r // (side // 2)][c // (side // 2)]
            )
    return out


def downsample(layer: int, keep: float) -> Chooser:
    table = bayer(16)

    def choose(s: Situation) -> list[int]:
        if s.layer != layer or s.step:
            return s.alive
        images = sorted({s.image_of[c] for c in s.alive})
        sizes = [sum(s.image_of[c] == i for c in s.alive) for i in images]
        count, total = half_up(s.total, keep), sum(sizes)
        share = [count * size // total for size in sizes]
        by_rest = sorted(range(len(sizes)), key=lambda i: (-(count * sizes[i] % total), i))
        for i in by_rest[: count - sum(share)]:
            share[i] += 1
        kept: list[int] = []
        for image, n in zip(images, share, strict=True):
            own = [c for c in range(len(s.image_of)) if s.image_of[c] == image]

            def rank(c: int, own: list[int] = own) -> float:
                number = own.index(c)
                if s.side is None:
                    return int(f"{number:024b}"[::-1], 2)
                return table[number // s.side][number % s.side]

            kept += sorted((c for c in s.alive if s.image_of[c] == image), key=lambda c: (rank(c), c))[:n]
        return kept

    return choose


@dataclass(frozen=True)
class Decay:
    """Test schedule: at every step t the layer keeps total / (t + 2); a stand-in for decode-time methods."""

    layer: int

    def acts(self, layer: int, step: int) -> bool:
        return layer == self.layer

    def __call__(self, view: View) -> Tensor:
        return view.total // (view.step + 2)


def by_last(s: Situation) -> dict[int, float]:
    share = s.attention(s.newest).mean(0)
    return {c: share[c].item() for c in s.alive}


def grid_rank(s: Situation, c: int) -> float:
    """Place of a token in an even order of its image."""
    n = [v for v, image in enumerate(s.image_of) if image == s.image_of[c]].index(c)
    return int(f"{n:024b}"[::-1], 2) / 2**24 if s.side is None else bayer(16)[n // s.side][n % s.side]


def by_instruction(s: Situation) -> dict[int, float]:
    asking = [c for c in range(s.first, s.newest + 1) if s.kinds[c] == "instruction"] or [s.newest]
    rows = [s.attention(q).mean(0) for q in asking]
    return {c: sum(row[c].item() for row in rows) / len(rows) for c in s.alive}


def by_received(s: Situation) -> dict[int, float]:
    running = [q for q in range(s.first, s.newest + 1) if s.kinds[q] != "image" or q in s.alive]
    rows = {q: s.attention(q).mean(0) for q in running}
    later = {c: [q for q in running if q > c] for c in s.alive}
    return {c: sum(rows[q][c].item() for q in later[c]) / max(1, len(later[c])) for c in s.alive}


def by_layers(s: Situation) -> dict[int, float]:
    rows = [s.attention(s.newest, back).mean(0) for back in (1, 2, 3) if back <= s.layer]
    return {c: max(row[c].item() for row in rows) for c in s.alive}


def by_accumulated(s: Situation) -> dict[int, float]:
    past = s.memory.setdefault(s.layer, {})
    share = s.attention(s.newest).mean(0)
    for c in s.alive:
        past[c] = past.get(c, 0.0) + share[c].item()
    return {c: past[c] for c in s.alive}


def by_sparing(s: Situation) -> dict[int, float]:
    """As the last token ranks, but what a token of the answer paid more than the mean to comes after all others."""
    looked: set[int] = s.memory.setdefault("looked", set())
    share = by_last(s)
    if s.step:
        looked.update(c for c in s.alive if share[c] > sum(share.values()) / len(s.alive))
    else:
        looked.clear()
    order = sorted(s.alive, key=lambda c: (c in looked, -share[c], c))
    return {c: -float(place) for place, c in enumerate(order)}


def by_tower(s: Situation) -> dict[int, float]:
    s.memory.update({c: vision.attention(s, [c])[c] for c in s.alive if c >= s.first and not s.step})
    return {c: s.memory[c] for c in s.alive}


def by_diverse(s: Situation) -> dict[int, float]:
    for image in {s.image_of[c] for c in s.alive if c >= s.first and not s.step}:
        order = vision.most_diverse(s, [c for c in s.alive if s.image_of[c] == image])
        s.memory.update({c: 1 - (turn + 0.5) / len(order) for turn, c in enumerate(order)})
    return {c: s.memory[c] for c in s.alive}


def by_any(s: Situation) -> dict[int, float]:
    share = s.attention(s.newest).mean(0)
    parts = [{c: share[c].item() for c in s.alive}, by_received(s), {c: -grid_rank(s, c) for c in s.alive}]
    best = dict.fromkeys(s.alive, math.inf)
    for number, scores in enumerate(parts):
        for rank, c in enumerate(sorted(s.alive, key=lambda c, scores=scores: (-scores[c], c))):
            best[c] = min(best[c], rank + number / 4)
    return {c: -rank for c, rank in best.items()}


def decaying(layer: int, ranking: Callable[[Situation], dict[int, float]]) -> Chooser:
    def choose(s: Situation) -> list[int]:
        if s.layer != layer:
            return s.alive
        scores = ranking(s)
        return sorted(s.alive, key=lambda c: (-scores[c], c))[: s.total // (s.step + 2)]

    return choose


def tiny_predictor() -> RatePredictor:
    """Of the tiny models' four heads, with weights that make the rate depend on sample and step."""
    made = RatePredictor(4, (0.0, 0.25, 0.5, 0.75))
    with torch.no_grad():
        made.linear.weight.copy_(6 * torch.randn(4, 16, generator=torch.Generator().manual_seed(2)))
        made.linear.bias[0] = -6  # rarely the rate 0, under which nothing would be tested
    return made


def dyrate(layer: int, twelfths: int = 0) -> Chooser:
    """`twelfths`: of a further rate at the last layer."""
    weight, bias = tiny_predictor().linear.weight, tiny_predictor().linear.bias

    def choose(s: Situation) -> list[int]:
        if s.layer < layer or (s.layer > layer and not twelfths):
            return s.alive
        share = s.attention(s.newest, min(1, s.layer))
        mean = share.mean(0)
        if s.layer > layer:
            left = Fraction(4 - s.memory["rate"], 4) - Fraction(twelfths, 12) * Fraction(
                s.layer - layer, s.layers - 1 - layer
            )
            return sorted(s.alive, key=lambda c: (-mean[c].item(), c))[: max(0, math.floor(s.total * left))]
        features = []
        for head in share:
            for kind in ("system", "image", "instruction", "response"):
                features.append(sum(v.item() for v, k in zip(head, s.kinds, strict=True) if k == kind))
        k = s.memory["rate"] = int((weight @ torch.tensor(features) + bias).argmax())
        return sorted(s.alive, key=lambda c: (-mean[c].item(), c))[: s.total * (4 - k) // 4]

    return choose


SEARCHED = ScheduleFile((1.0, 0.7, 0.7, 0.3), "last", "sample", {"layers": 4})


def per_layer(keep: tuple[float, ...]) -> Chooser:
    def choose(s: Situation) -> list[int]:
        if s.step or not s.layer or keep[s.layer] == keep[s.layer - 1]:
            return s.alive
        share = s.attention(s.newest).mean(0)
        return sorted(s.alive, key=lambda c: (-share[c].item(), c))[: half_up(s.total, keep[s.layer])]

    return choose


def ragged(view: View) -> Tensor:
    """Test schedule, a plain function: each layer keeps two fewer than there are, samples differ by content."""
    more = (view.total * 7 + view.tokens.are(Kind.SYSTEM).sum(1) * 3) % 4
    return (view.alive - 2 - more).clamp(min=1) if view.step == 0 else view.alive


def ragged_chooser(s: Situation) -> list[int]:
    if s.step:
        return s.alive
    before = s.image_of.index(0) if 0 in s.image_of else 0
    count = max(1, len(s.alive) - 2 - (s.total * 7 + before * 3) % 4)
    return sorted(s.alive, key=lambda c: (grid_rank(s, c), c))[:count]


LISTED: dict[str, Case] = {
    "fastv": Case(methods.fastv(layer=1, keep=0.5), fastv(1, 0.5)),
    "vtw": Case(methods.vtw(layer=2), vtw(2), content_free=True),
    "random": Case(methods.random(layer=0, keep=0.4, seed=3), random(0, 0.4, 3), content_free=True),
    "dyrate": Case(methods.dyrate(tiny_predictor(), layer=1), dyrate(1)),
    "schedule": Case(methods.schedule(SEARCHED), per_layer(SEARCHED.keep)),
    "downsample": Case(methods.downsample(layer=0, keep=0.25), downsample(0, 0.25), content_free=True),
    "divprune": Case(methods.divprune(keep=0.5), vision.divprune(0.5), slow=True),
    "cdpruner": Case(methods.cdpruner(keep=0.3), vision.cdpruner(0.3), slow=True),
    "visionzip": Case(methods.visionzip(keep=0.4, contextual=0.5), vision.visionzip(0.4, 0.5, False), slow=True),
    "prumerge": Case(methods.prumerge(), vision.prumerge(False, False), slow=True),
    "prumerge_plus": Case(methods.prumerge_plus(), vision.prumerge(True, False), slow=True),
    "vscan1": Case(methods.vscan1(keep=0.4, windows=2), vision.vscan1(0.4, 0.5, 2), slow=True),
    "vispruner": Case(methods.vispruner(keep=0.4), vision.vispruner(0.4, 0.5), slow=True),
    "flowcut": Case(methods.flowcut(keep=0.4), vision.flowcut(0.4, (0, 1, 1, 1)), slow=True),
    "tome": Case(methods.tome(keep=0.3, rounds=3), vision.matching(0.3, 3, -1), slow=True),
    "dymu": Case(methods.dymu(threshold=0.3), vision.matching(None, None, 0.3), slow=True),
    "pdrop": Case(methods.pdrop(keep=0.6), zoo.pdrop(0.6, [1, 2, 3], 0), slow=True),
    "vscan2": Case(methods.vscan2(keep=0.4), zoo.vscan2(0.4), slow=True),
    "dart": Case(methods.dart(1, 0.6, pivots=2, text_pivots=2), zoo.dart(1, 0.6, 2, 2), slow=True),
    "sparsevlm": Case(
        methods.sparsevlm(layers=(1, 3), scale=0.6), zoo.sparsevlm([1, 3], None, 0.6, 0.3, summed=False), slow=True
    ),
    "fitprune": Case(methods.fitprune((1.0, 0.8, 0.5, 0.3)), zoo.fitprune([1.0, 0.8, 0.5, 0.3]), slow=True),
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
        Method(LastQuery(0), methods.dyrate(tiny_predictor(), layer=0, ranking="even").schedule), dyrate(0), slow=True
    ),
    "pdrop before": Case(methods.pdrop(layers=(2, 3), rank="before"), zoo.pdrop(0.5, [2, 3], 1), slow=True),
    "vscan2 own": Case(methods.vscan2(keep=0.4, rank="own"), zoo.vscan2(0.4, 0), slow=True),
    "sparsevlm table": Case(
        methods.sparsevlm((0.75, 0.5, 0.3), cluster="sum"),
        zoo.sparsevlm([1, 2, 3], [0.75, 0.5, 0.3], 0, 0.3, summed=True),
        slow=True,
    ),
    "ragged": Case(Method(Even(), ragged, name="ragged"), ragged_chooser, content_free=True),
    "visionzip's sums": Case(
        methods.visionzip(keep=0.4, contextual=0.3, merging="sum"), vision.visionzip(0.4, 0.3, True), slow=True
    ),
    "prumerge's neighbours": Case(methods.prumerge(merging="neighbours"), vision.prumerge(False, True), slow=True),
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
