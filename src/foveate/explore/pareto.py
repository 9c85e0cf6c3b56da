"""Quality against work: a line for every method over its budgets, and the front that nothing beats on both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..methods.spec import Composed, Named, read, write
from .canvas import save, subplots

WORKS = {
    "tokens": "visual tokens of the prefill, share of all",
    "flops": "FLOPs of prefill and decode, over unpruned",
    "bytes": "KV cache at the end, over unpruned",
}
TUNED = ("keep", "rate", "threshold", "scale")  # knobs that differ from budget to budget
CONTROLS = ("random", "downsample", "score=random", "score=even")
Point = tuple[float, float]  # work, quality


def line_of(spec: str) -> str:
    """What a method is called whatever its budget: without the knobs that are tuned; a schedule's file by its name."""
    return write(
        _shortened(part)
        if isinstance(part, Named)
        else Composed(tuple((key, _shortened(named)) for key, named in part.parts))
        for part in read(spec)
    )


def _shortened(spec: Named) -> Named:
    """Without the tuned knobs; a schedule's file without its folder and the number at its end."""
    left = spec.without(*TUNED)
    if left.name != "schedule" or not left.knobs:
        return left
    (_, path), *others = left.knobs
    return Named(left.name, (("", Path(path).stem.rstrip("0123456789.").rstrip("-")), *others))


def lines(reports: Sequence[Mapping[str, Any]], figure: str, work: str) -> dict[str, list[Point]]:
    """Points of every method in reports of `foveate eval`, by work; unpruned among them.

    Raises:
        ValueError: a report has no such figure, or there is no such work.
    """
    if work not in WORKS:
        raise ValueError(f"unknown work {work!r}; expected one of {', '.join(WORKS)}")
    found: dict[str, list[Point]] = {}
    for body in reports:
        for spec, one in body["methods"].items():
            if figure not in one["figures"]:
                known = ", ".join(repr(name) for name in one["figures"])
                raise ValueError(f"there is no figure {figure!r} of {spec}; there are {known}")
            found.setdefault(line_of(spec), []).append(
                (one["work"][work], one["figures"][figure]["value"])
            )
    return {name: sorted(set(points)) for name, points in found.items()}


def front(found: Mapping[str, Sequence[Point]]) -> list[Point]:
    """The points that no other equals or beats on both work and quality, by work."""
    best: list[Point] = []
    for work, value in sorted(
        {p for points in found.values() for p in points}, key=lambda p: (p[0], -p[1])
    ):
        if not best or value > best[-1][1]:
            best.append((work, value))
    return best


def plot_pareto(
    found: Mapping[str, Sequence[Point]], figure: str, work: str, title: str, path: Path
) -> None:
    """Draws `lines`; controls dashed and black, the front a broad grey stair.

    Raises:
        ValueError: matplotlib or the folder of `path` is missing.
    """
    drawn, axes = subplots(1, 1, (10, 6))
    axis = axes[0][0]
    axis.step(
        *zip(*front(found), strict=True),
        where="post",
        color="lightgray",
        linewidth=6,
        label="front",
    )
    shown = sorted(name for name in found if name != "unpruned")
    for place, name in enumerate(shown):
        control = name.startswith(CONTROLS)
        style = {
            "linestyle": "--" if control else "-",
            "color": "black" if control else f"C{place % 10}",
        }
        marker = "osv^D<P*x"[place % 9]  # nine and ten: no pair of marker and colour comes twice
        axis.plot(*zip(*found[name], strict=True), marker=marker, label=name, alpha=0.8, **style)
    for _, value in found.get("unpruned", [])[:1]:
        axis.axhline(value, color="gray", linewidth=0.8)
    axis.set(xlabel=WORKS[work], ylabel=figure, title=title)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(drawn, path)
