"""Methods before the decoder, written naively from their papers' equations, for one image at a time, with loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from models.tiny import PATCHES, Patch
from oracles.oracle import Chooser, Mixed, Situation

LAST = -1  # the tower's layer whose output the tiny models read
NEWLINE = Patch([0.0] * 2, [np.zeros(8)] * 2, [np.zeros((2, 8))] * 2, [np.zeros(16)] * 2)
Vectors = dict[int, np.ndarray]
Chosen = tuple[list[int], Callable[[list[int]], dict[int, Tensor]] | None]


def half_up(total: int, keep: float) -> int:
    return math.floor(total * keep + 0.5)


def per_image(decide: Callable[[Situation, list[int]], Chosen], layer: int = 0) -> Chooser:
    """Before a layer, `decide` gives, of one image's columns, those that stay, and what becomes of their states."""

    def choose(s: Situation) -> list[int] | Mixed:
        if s.layer != layer or s.step:
            return s.alive
        keep: list[int] = []
        states: dict[int, Tensor] = {}
        for image in sorted({s.image_of[c] for c in s.alive}):
            own = [c for c in s.alive if s.image_of[c] == image]
            if own[0] < s.first:  # an image of an earlier turn has been decided on
                keep += own
                continue
            chosen, merge = decide(s, own)
            stay = sorted({*chosen, *(c for c in own if c == s.newest)})
            keep += stay
            if merge is not None and len(chosen) < len(own):
                states.update(merge(stay))
        return Mixed(keep, states) if len(keep) < len(s.alive) else keep

    return choose


def patch(s: Situation, c: int) -> Patch:
    return PATCHES.get(s.state(c).detach().numpy().tobytes(), NEWLINE)


def attention(s: Situation, own: list[int], layer: int = LAST) -> dict[int, float]:
    return {c: patch(s, c).attention[layer] for c in own}


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    size = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    return float(a @ b) / size if size else 0.0


def alike(vectors: Vectors) -> dict[tuple[int, int], float]:
    return {(a, b): cosine(vectors[a], vectors[b]) for a in vectors for b in vectors}


def embeddings(s: Situation, own: list[int]) -> Vectors:
    return {c: s.state(c).detach().double().numpy() for c in own}


def best_first(scores: dict[int, float]) -> list[int]:
    return sorted(scores, key=lambda c: (-scores[c], c))


def went(s: Situation, taken: dict[int, list[int]]) -> None:
    """Notes into which token each one went, for oracles that weigh clusters."""
    into = s.memory.setdefault("into", {})
    into.update({c: target for target, members in taken.items() for c in members})


def mean_of(s: Situation, members: list[int], weights: list[float]) -> Tensor:
    total = sum(weights)
    return sum(s.state(c) * (w / total) for c, w in zip(members, weights, strict=True))


def most_diverse(s: Situation, own: list[int], count: int | None = None) -> list[int]:
    """The order in which each next token is the one farthest from all before it; its first `count`."""
    near = alike(embeddings(s, own))
    nearest = {c: max(near[c, o] for o in own if o != c) for c in own}
    chosen = [min(own, key=lambda c: (round(nearest[c], 12), c))]
    while len(chosen) < (len(own) if count is None else count):
        rest = [c for c in own if c not in chosen]
        chosen.append(max(rest, key=lambda c: min(1 - near[c, o] for o in chosen)))
    return chosen


def divprune(keep: float) -> Chooser:
    return per_image(lambda s, own: (most_diverse(s, own, half_up(len(own), keep)), None))


def cdpruner(keep: float) -> Chooser:
    """Greedy by determinants, with no incremental algebra."""

    def decide(s: Situation, own: list[int]) -> Chosen:
        vectors = embeddings(s, own)
        words = [
            s.state(c).detach().double().numpy()
            for c in range(s.first, s.newest + 1)
            if s.kinds[c] == "instruction"
        ]
        relevance = dict.fromkeys(own, 1.0)
        if words:
            raw = {c: sum(cosine(vectors[c], w) for w in words) / len(words) for c in own}
            low, high = min(raw.values()), max(raw.values())
            relevance = {c: (raw[c] - low + 1e-6) / (high - low) for c in own}
        kernel = {
            pair: relevance[pair[0]] * v * relevance[pair[1]] for pair, v in alike(vectors).items()
        }
        chosen: list[int] = []
        while len(chosen) < half_up(len(own), keep):

            def volume(c: int) -> float:
                some = [*chosen, c]
                return float(
                    np.linalg.slogdet(np.array([[kernel[a, b] for a in some] for b in some]))[1]
                )

            chosen.append(
                max((c for c in own if c not in chosen), key=lambda c: (round(volume(c), 9), -c))
            )
        return chosen, None

    return per_image(decide)


def visionzip(keep: float, contextual: float, sums: bool) -> Chooser:
    def decide(s: Situation, own: list[int]) -> Chosen:
        count = half_up(len(own), keep)
        context = half_up(count, contextual)
        dominant = best_first(attention(s, own))[: count - context]
        rest = [c for c in own if c not in dominant]
        targets = [rest[k * max(1, len(rest) // context)] for k in range(context)]

        def merge(stay: list[int]) -> dict[int, Tensor]:
            keys = {c: patch(s, c).keys[LAST] for c in own}
            taken: dict[int, list[int]] = {t: [] for t in targets}
            for c in own:
                if c not in stay:
                    taken[max(targets, key=lambda t: cosine(keys[c], keys[t]))].append(c)
            went(s, taken)
            out = {}
            for t, members in taken.items():
                if members and sums:
                    out[t] = s.state(t) + sum(s.state(c) for c in members) / len(members)
                elif members:
                    out[t] = sum(s.state(c) for c in [t, *members]) / (1 + len(members))
            return out

        return [*dominant, *targets], merge

    return per_image(decide)


def fence(values: list[float]) -> float:
    """Q3 + 1.5 IQR, quartiles by linear interpolation."""
    ranked = sorted(values)

    def quantile(q: float) -> float:
        place = q * (len(ranked) - 1)
        low = int(place)
        return ranked[low] + (place - low) * (ranked[min(low + 1, len(ranked) - 1)] - ranked[low])

    return quantile(0.75) + 1.5 * (quantile(0.75) - quantile(0.25))


def prumerge(spaced: bool, neighbours: bool) -> Chooser:
    def decide(s: Situation, own: list[int]) -> Chosen:
        share = attention(s, own)
        top = fence(list(share.values()))
        chosen = [c for c in own if share[c] > top] or best_first(share)[:1]
        if spaced:
            distance = max(2, len(own) // len(chosen) // 3)
            chosen = [c for k, c in enumerate(own) if c in chosen or k % distance == 0]

        def merge(stay: list[int]) -> dict[int, Tensor]:
            keys = {c: patch(s, c).keys[LAST] for c in own}
            near, weight = alike(keys), {c: max(share[c], 1e-12) for c in own}
            if neighbours:
                out = {}
                for k in stay:
                    others = sorted((c for c in own if c != k), key=lambda c: (-near[k, c], c))[:32]
                    out[k] = s.state(k) + sum(weight[c] * s.state(c) for c in others)
                return out
            taken: dict[int, list[int]] = {k: [k] for k in stay}
            for c in own:
                if c not in stay:
                    taken[max(stay, key=lambda k: near[c, k])].append(c)
            went(s, taken)
            return {
                k: mean_of(s, members, [weight[c] for c in members]) for k, members in taken.items()
            }

        return chosen, merge

    return per_image(decide)


def vscan1(keep: float, local: float, windows: int) -> Chooser:
    def decide(s: Situation, own: list[int]) -> Chosen:
        wide, close = attention(s, own), attention(s, own, 0)
        count = half_up(len(own), keep)

        def window(c: int) -> int:
            k = own.index(c)
            if s.side is None:
                return k * windows * windows // len(own)
            return k // s.side * windows // s.side * windows + k % s.side * windows // s.side

        turn = {c: sum(window(o) == window(c) and close[o] > close[c] for o in own) for c in own}
        chosen = sorted(own, key=lambda c: (turn[c], -close[c], c))[: half_up(count, local)]
        chosen += [c for c in best_first(wide) if c not in chosen][: count - len(chosen)]

        def merge(stay: list[int]) -> dict[int, Tensor]:
            near = alike(embeddings(s, own))
            taken: dict[int, list[int]] = {k: [k] for k in stay}
            for c in own:
                if c not in stay:
                    taken[max(stay, key=lambda k: near[c, k])].append(c)
            went(s, taken)
            return {k: mean_of(s, members, [1.0] * len(members)) for k, members in taken.items()}

        return chosen, merge

    return per_image(decide)


def vispruner(keep: float, important: float) -> Chooser:
    def decide(s: Situation, own: list[int]) -> Chosen:
        count = half_up(len(own), keep)
        order = best_first(attention(s, own))
        first = order[: half_up(count, important)]
        rest, states = order[len(first) :], {c: patch(s, c).states[LAST] for c in own}
        while len(rest) > count - len(first):
            odd = rest[1::2]
            likeness = {c: max(cosine(states[c], states[o]) for o in odd) for c in rest[::2]}
            ranked = sorted(likeness, key=lambda c: -likeness[c])
            gone = ranked[: min(8, len(rest) - (count - len(first)))]
            rest = [c for c in rest if c not in gone]
        return [*first, *rest], None

    return per_image(decide)


def flowcut(keep: float, layers: tuple[int, ...]) -> Chooser:
    def decide(s: Situation, own: list[int]) -> Chosen:
        total = dict.fromkeys(own, 0.0)
        for layer in layers:
            flow = {
                c: patch(s, c).attention[layer] * float(abs(patch(s, c).values[layer]).sum())
                for c in own
            }
            low, high = min(flow.values()), max(flow.values())
            total = {c: total[c] / 2 + (flow[c] - low) / (high - low) / 2 for c in own}
        return best_first(total)[: half_up(len(own), keep)], None

    return per_image(decide)


def matching(keep: float | None, rounds: int | None, threshold: float) -> Chooser:
    """ToMe with `keep` and `rounds`, DyMU with a threshold."""

    def decide(s: Situation, own: list[int]) -> Chosen:
        least = 1 if keep is None else half_up(len(own), keep)
        each = len(own) if rounds is None else math.ceil((len(own) - least) / rounds)
        members = {c: [c] for c in own}
        left = list(own)
        while len(left) > least:
            key = {
                c: sum(patch(s, m).keys[LAST] for m in members[c]) / len(members[c]) for c in left
            }
            even, odd = left[::2], left[1::2]
            pairs = []
            for a in even:
                b = max(odd, key=lambda b: cosine(key[a], key[b]))
                pairs.append((cosine(key[a], key[b]), a, b))
            pairs = sorted((p for p in pairs if p[0] >= threshold), key=lambda p: -p[0])
            pairs = pairs[: min(each, len(left) - least)]
            if not pairs:
                break
            for _, a, b in pairs:
                members[b] += members.pop(a)
                left.remove(a)

        def merge(stay: list[int]) -> dict[int, Tensor]:
            out = {}
            for k in left:
                some = [c for c in members[k] if c == k or c not in stay]
                out[k] = torch.stack([s.state(c) for c in some]).mean(0)
                went(s, {k: some})
            return out

        return left, merge

    return per_image(decide)


def pact(layer: int, important: float, cutoff: float) -> Chooser:
    """Importance, clusters bounded by a distance, and what is taken back (2504.08966)."""

    def decide(s: Situation, own: list[int]) -> Chosen:
        bare = {c: [s.projected(w, c, False) for w in ("queries", "keys")] for c in own}
        query = sum(bare[c][0] for c in own) / len(own)
        score = dict.fromkeys(own, 0.0)
        for head in range(query.shape[0]):
            shared = head * bare[own[0]][1].shape[0] // query.shape[0]
            products = {
                c: float(query[head] @ bare[c][1][shared]) / math.sqrt(query.shape[1]) for c in own
            }
            whole = sum(math.exp(p) for p in products.values())
            for c in own:
                score[c] += math.exp(products[c]) / whole / query.shape[0]
        score = {c: v * float(s.state(c).norm()) for c, v in score.items()}
        chosen = sorted(best_first(score)[: max(1, half_up(len(own), important))])
        keys = {c: s.projected("keys", c, True).flatten().detach().double().numpy() for c in own}
        far = {(a, b): max(0.0, 1 - near) for (a, b), near in alike(keys).items()}
        density = {c: sum(math.exp(-((far[c, o] / 2) ** 2)) for o in chosen) for c in chosen}
        centres: list[int] = []
        for c in sorted(chosen, key=lambda c: (-density[c], c)):
            if all(far[c, o] > cutoff for o in centres):
                centres.append(c)
        taken: dict[int, list[int]] = {c: [c] for c in sorted(centres)}
        for c in own:
            nearest = min(taken, key=lambda o: (far[c, o], o))
            if c not in taken and far[c, nearest] <= 1.5 * cutoff:
                taken[nearest].append(c)

        def merge(stay: list[int]) -> dict[int, Tensor]:
            went(s, taken)
            out = {}
            for k, members in taken.items():
                some = [c for c in members if c == k or c not in stay]
                out[k] = mean_of(s, some, [1.0] * len(some))
            return out

        return sorted(centres), merge

    return per_image(decide, layer)
