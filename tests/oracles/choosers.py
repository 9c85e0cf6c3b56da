"""The definitions of methods, written naively for one sample; `cases` sets them beside the library's methods."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import torch

from foveate.core.predictor import RatePredictor
from oracles import vision_cases as vision
from oracles.oracle import Chooser, Situation


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
                4 * small[r % (side // 2)][c % (side // 2)]
                + [[0, 2], [3, 1]][r // (side // 2)][c // (side // 2)]
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

            kept += sorted(
                (c for c in s.alive if s.image_of[c] == image), key=lambda c: (rank(c), c)
            )[:n]
        return kept

    return choose


def by_last(s: Situation) -> dict[int, float]:
    share = s.attention(s.newest).mean(0)
    return {c: share[c].item() for c in s.alive}


def grid_rank(s: Situation, c: int) -> float:
    """Place of a token in an even order of its image."""
    n = [v for v, image in enumerate(s.image_of) if image == s.image_of[c]].index(c)
    return (
        int(f"{n:024b}"[::-1], 2) / 2**24 if s.side is None else bayer(16)[n // s.side][n % s.side]
    )


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
        looked.update(c for c in s.alive if share[c] > 1.0001 * sum(share.values()) / len(s.alive))
    else:
        looked.clear()
    order = sorted(s.alive, key=lambda c: (c in looked, -share[c], c))
    return {c: -float(place) for place, c in enumerate(order)}


def by_tower(s: Situation) -> dict[int, float]:
    s.memory.update(
        {c: vision.attention(s, [c])[c] for c in s.alive if c >= s.first and not s.step}
    )
    return {c: s.memory[c] for c in s.alive}


def by_diverse(s: Situation) -> dict[int, float]:
    for image in {s.image_of[c] for c in s.alive if c >= s.first and not s.step}:
        order = vision.most_diverse(s, [c for c in s.alive if s.image_of[c] == image])
        s.memory.update({c: 1 - (turn + 0.5) / len(order) for turn, c in enumerate(order)})
    return {c: s.memory[c] for c in s.alive}


def by_any(s: Situation) -> dict[int, float]:
    share = s.attention(s.newest).mean(0)
    parts = [
        {c: share[c].item() for c in s.alive},
        by_received(s),
        {c: -grid_rank(s, c) for c in s.alive},
    ]
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
            return sorted(s.alive, key=lambda c: (-mean[c].item(), c))[
                : max(0, math.floor(s.total * left))
            ]
        features = []
        for head in share:
            for kind in ("system", "image", "instruction", "response"):
                features.append(
                    sum(v.item() for v, k in zip(head, s.kinds, strict=True) if k == kind)
                )
        k = s.memory["rate"] = int((weight @ torch.tensor(features) + bias).argmax())
        return sorted(s.alive, key=lambda c: (-mean[c].item(), c))[: s.total * (4 - k) // 4]

    return choose


def per_layer(keep: tuple[float, ...]) -> Chooser:
    def choose(s: Situation) -> list[int]:
        if s.step or not s.layer or keep[s.layer] == keep[s.layer - 1]:
            return s.alive
        share = s.attention(s.newest).mean(0)
        return sorted(s.alive, key=lambda c: (-share[c].item(), c))[
            : half_up(s.total, keep[s.layer])
        ]

    return choose


def ragged_chooser(s: Situation) -> list[int]:
    if s.step:
        return s.alive
    count = max(1, len(s.alive) - 2 - (s.total * 7 + s.kinds.count("system") * 3) % 4)
    return sorted(s.alive, key=lambda c: (grid_rank(s, c), c))[:count]
