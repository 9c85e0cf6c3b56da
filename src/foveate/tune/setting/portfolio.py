"""What is tried: one line for each method, with its one knob left open.

Cheap rankings come first. Kept tokens speak for the dropped nearly everywhere (`weigh`, `merge`),
since that lost the least wherever it was measured; one line without it stands for the papers.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...eval import equal_work as equal
from ...methods import parse
from ...methods.spec import MARK
from .halving import Candidate

LEVELS = (0.7, 0.5, 0.35, 0.25, 0.18, 0.12)  # costs, over the unpruned model's
SPEAKING = "weigh=nearest,merge=mean"

_LINES = (
    # before the decoder: what is unlike each other, what the tower attends to, what asks for it
    f"divprune:keep=?,{SPEAKING}",
    f"vispruner:keep=?,{SPEAKING}",
    f"visionzip:keep=?,{SPEAKING}",
    f"cdpruner:keep=?,{SPEAKING}",
    "tome:keep=?,weigh=clusters",
    # inside it: one cut, early or late, by attention, by diversity, or by both
    f"fastv:layer={{early}},ranking=diverse,keep=?,{SPEAKING}",
    f"fastv:layer={{late}},ranking=diverse,keep=?,{SPEAKING}",
    f"fastv:layer={{early}},keep=?,{SPEAKING}",
    f"fastv:layer={{late}},keep=?,{SPEAKING}",
    "fastv:layer={late},keep=?",
    f"fastv:layer={{early}},ranking=mix,keep=?,{SPEAKING}",
    f"dart:layer={{early}},keep=?,{SPEAKING}",
    # over the depth: in stages, and along a curve
    f"score=diverse,schedule=pdrop:keep=?,{SPEAKING}",
    f"psigmoid:keep=?,first=0,ranking=diverse,{SPEAKING}",
)


def lines(depth: int, more: Sequence[str] = ()) -> list[str]:
    """Every entry for a decoder of this depth, each with its open knob as ``?``.

    Args:
        depth: layers of the decoder.
        more: entries of the user's own; what has no ``?`` is taken as it is.

    Raises:
        ValueError: one of `more` is no method, or several.
    """
    places = {"early": max(1, round(depth / 16)), "late": min(max(2, round(depth / 5)), depth - 1)}
    found = [line.format(**places) for line in _LINES]
    for spec in more:
        if len(parse(spec.replace(f"={MARK}", "=1"))) != 1:
            raise ValueError(f"{spec!r} is several methods; expected one")
        found.append(spec)
    return list(dict.fromkeys(found))


def candidates_of(
    depth: int, more: Sequence[str], target: str, work: equal.Work
) -> list[Candidate]:
    """Every entry, tuned to every cost that it can have.

    Args:
        depth: layers of the decoder.
        more: as of `lines`.
        target: what costs are in: one of `equal_work.WORKS`.
        work: of methods, over the unpruned model's.

    Raises:
        ValueError: as `lines`.
    """
    found: dict[str, Candidate] = {}
    for line in lines(depth, more):
        if MARK not in line:
            cost = work(parse(line))
            found[line] = Candidate(line, nearest(cost), cost)
            continue
        for level, ratio in enumerate(LEVELS):
            try:
                spec, cost = equal.tune(line, equal.Target(target, ratio), work, depth)
            except ValueError:  # it cannot cost so little
                continue
            if cost > 0.9 * ratio:  # else a coarse knob, of another level
                found.setdefault(spec, Candidate(spec, level, cost))
    return list(found.values())


def nearest(cost: float) -> int:
    """The level of a cost."""
    return min(range(len(LEVELS)), key=lambda level: abs(cost - LEVELS[level]))
