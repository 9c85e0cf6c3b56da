"""The zoo's methods as their papers write them: one sample, Python loops, nothing of the library."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from oracles.oracle import Chooser, Mixed, Situation


def half_up(total: int, keep: float) -> int:
    return math.floor(total * keep + 0.5)


def best(s: Situation, scores: dict[int, float], count: int) -> list[int]:
    return sorted(s.alive, key=lambda c: (-scores[c], c))[:count]


def asked(s: Situation) -> list[int]:
    """The instruction's tokens that run now, or else the newest."""
    return [c for c in range(s.first, s.newest + 1) if s.kinds[c] == "instruction"] or [s.newest]


def last(s: Situation, back: int = 1) -> dict[int, float]:
    share = s.attention(s.newest, back)
    return {c: sum(share[h, c].item() for h in range(len(share))) / len(share) for c in s.alive}


def pdrop(keep: float, layers: list[int], back: int) -> Chooser:
    """Stage s runs with lambda^s of the tokens (2410.17247)."""

    def choose(s: Situation) -> list[int]:
        if s.step or s.layer not in layers:
            return s.alive
        return best(s, last(s, back), half_up(s.total, keep ** (layers.index(s.layer) + 1)))

    return choose


def vscan2(keep: float, back: int = 1) -> Chooser:
    def choose(s: Situation) -> list[int]:
        middle = s.step == 0 and s.layer == s.layers // 2
        return best(s, last(s, back), half_up(len(s.alive), keep)) if middle else s.alive

    return choose


def dart(layer: int, keep: float, pivots: int, text_pivots: int) -> Chooser:
    """Pivots with the largest keys; each of them takes those least like itself (2502.11494)."""

    def like(a: Tensor, b: Tensor) -> float:
        dot = sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))
        return dot / math.sqrt(sum(x * x for x in a.tolist()) * sum(y * y for y in b.tolist()))

    def size(s: Situation, c: int) -> float:
        return sum(abs(x) for head in s.key(c).tolist() for x in head)

    def choose(s: Situation) -> list[int]:
        want = half_up(s.total, keep)
        if s.step or s.layer != layer or want >= len(s.alive):
            return s.alive
        old, new = [c for c in s.alive if c < s.first], [c for c in s.alive if c >= s.first]
        seen = sorted(new, key=lambda c: (-size(s, c), c))[: min(pivots, want)]
        said = sorted(asked(s), key=lambda c: (-size(s, c), c))[:text_pivots]
        kept = (old + seen)[:want]
        left, turns = want - len(kept), seen + said
        for number, pivot in enumerate(turns):
            share = left // len(turns) + (number < left % len(turns))
            rest = sorted(
                (c for c in new if c not in kept),
                key=lambda c: (like(s.state(pivot), s.state(c)), c),
            )
            kept += rest[:share]
        return kept

    return choose


def fitprune(keep: list[float]) -> Chooser:
    """Self- times cross-attention, maximum over heads (2409.10197)."""

    def received(s: Situation, rows: list[int]) -> dict[int, float]:
        most = {q: s.attention(q).amax(0) for q in rows}
        return {c: sum(most[q][c].item() for q in rows) for c in s.alive}

    def choose(s: Situation) -> list[int]:
        count = half_up(s.total, keep[s.layer])
        if s.step or not s.layer or count >= len(s.alive):
            return s.alive
        own, cross = received(s, [c for c in s.alive if c >= s.first]), received(s, asked(s))
        return best(s, {c: own[c] * cross[c] for c in s.alive}, count)

    return choose


def raters(s: Situation) -> list[int]:
    """Words whose mean softmax over the picture's tokens is at least the mean (2410.04417, Section 3.2)."""
    words, seen = asked(s), [c for c in s.alive if c >= s.first]
    if not seen:
        return words
    mean = dict.fromkeys(words, 0.0)
    for v in seen:
        dots = {w: (s.state(v).double() @ s.state(w).double()).item() for w in words}
        top = max(dots.values())
        total = sum(math.exp(x - top) for x in dots.values())
        for w in words:
            mean[w] += math.exp(dots[w] - top) / total / len(seen)
    return [w for w in words if mean[w] >= sum(mean.values()) / len(words) - 1e-12]


def peaks(points: list[Tensor], count: int) -> tuple[list[int], list[int]]:
    """Density peaks: centres, and the centre's place for every point."""
    size, n = points[0].shape[0], len(points)
    gap = [
        [
            math.sqrt(sum((x - y) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True)) / size)
            for b in points
        ]
        for a in points
    ]
    log_density = [-sum(d * d for d in sorted(row)[:count]) / count for row in gap]
    widest = max(max(row) for row in gap)
    score = []
    for i in range(n):
        denser = [j for j in range(n) if (log_density[j], -j) > (log_density[i], -i)]
        apart = min((gap[i][j] for j in denser), default=widest)
        score.append(log_density[i] + (math.log(apart) if apart else -math.inf))
    centres = sorted(range(n), key=lambda i: (-score[i], i))[:count]
    owner = [
        centres.index(i)
        if i in centres
        else min(range(count), key=lambda k, i=i: (gap[i][centres[k]], k))
        for i in range(n)
    ]
    return centres, owner


def sparsevlm(
    layers: list[int], keep: list[float] | None, scale: float, recycle: float, summed: bool
) -> Chooser:
    """Raters' attention, counts by table or rank, the best of the dropped merged (2410.04417, Section 3)."""

    def counted(s: Situation, paid: Tensor) -> int:
        if keep is not None:
            return half_up(s.total, keep[layers.index(s.layer)])
        values = torch.linalg.svdvals(paid)
        rank = sum(v > 1e-4 * values[0] for v in values.tolist())
        return len(s.alive) - max(0, math.floor(scale * (len(s.alive) - rank) + 1e-9))

    def choose(s: Situation) -> list[int] | Mixed:
        if not s.step and not s.layer and s.alive:
            s.memory["raters"] = raters(s)
        if s.step or s.layer not in layers or not s.alive:
            return s.alive
        paid = torch.stack([s.attention(q).mean(0)[s.alive] for q in s.memory["raters"]])
        count = counted(s, paid)
        if count >= len(s.alive):
            return s.alive
        order = best(s, dict(zip(s.alive, paid.mean(0).tolist(), strict=True)), len(s.alive))
        if not recycle or s.alive[0] < s.first:
            return order[:count]
        sizes = {}
        for k in range(count + 1):
            lost = len(order) - k
            again = min(lost, int(recycle * lost + 1e-9) + 1)
            if k + again // 10 + 1 <= count or k == 0:
                sizes[k] = again
        k = max(sizes)
        if not count:
            return []
        members = order[k : k + sizes[k]]
        centres, owner = peaks([s.state(c) for c in members], min(count - k, len(members)))
        merged = {}
        into = {c: members[centres[o]] for c, o in zip(members, owner, strict=True)}
        s.memory.setdefault("into", {}).update(into)
        for place, centre in enumerate(centres):
            own = torch.stack(
                [s.state(c) for c, o in zip(members, owner, strict=True) if o == place]
            )
            merged[members[centre]] = own.sum(0) if summed else own.mean(0)
        return Mixed(order[:k] + list(merged), merged)

    return choose


def st3(layer: int, stride: int, keep: float, floor: float, horizon: int, every: int) -> Chooser:
    """Shares fall in equal steps over layers, and by half a cosine over generated tokens."""

    def choose(s: Situation) -> list[int]:
        cuts = list(range(layer, s.layers, stride))
        if s.step % every or s.step >= horizon + every or s.layer not in cuts:
            return s.alive
        share = 1 - (1 - keep) * (cuts.index(s.layer) + 1) / len(cuts)
        fall = (1 + math.cos(math.pi * min(1, s.step / horizon))) / 2
        return best(s, last(s), half_up(s.total, share * (floor + (1 - floor) * fall)))

    return choose


def psigmoid(mean: float, slope: float, floor: float, first: int) -> Chooser:
    """keep(l) = 1 / (1 + exp(k (l - alpha))) above a floor, alpha so that the mean is met (2412.00556)."""

    def share(layer: int, alpha: float) -> float:
        return (
            1.0 if layer < first else floor + (1 - floor) / (1 + math.exp(slope * (layer - alpha)))
        )

    def choose(s: Situation) -> list[int]:
        if s.step or s.layer < first:
            return s.alive
        alpha = -20.0
        while sum(share(layer, alpha) for layer in range(s.layers)) < mean * s.layers:
            alpha += 1e-3
        return best(s, last(s), half_up(s.total, share(s.layer, alpha)))

    return choose
