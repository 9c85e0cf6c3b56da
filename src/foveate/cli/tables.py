"""Tables that several commands print."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from ..timing.comparison import PARTS, Contestant
from ..tune.search.premise import MASS, SHARES, Premise
from .output import console, flops
from .sheet import Sheet

ABOVE = "[red]![/red]"  # marks a ratio that no device could reach: it was mismeasured
_LEGEND = (
    "x of FLOPs and KV cache: of unpruned, computed. x of times: times faster than unpruned, both warmed up and run in "
    "turn."
)
_NOISE = (
    f" {ABOVE} marks a ratio above what any device could reach: the measurement is wrong there."
)


def compared(rows: Sequence[Contestant]) -> Sheet:
    """Kept tokens, FLOPs, KV cache and time of each row; from the second on, with ratios to the first."""
    noise = _NOISE if any(row.exceeded for row in rows) else ""
    columns = ("kept", "prefill", "FLOPs", "KV", "first token", "per token")
    out = Sheet("method", columns, caption=_LEGEND + noise)
    base = rows[0]
    for row in rows:
        ratio = row.cost.ratio(base.cost)
        if row is base:
            sizes = [
                flops(row.cost.prefill),
                flops(row.cost.flops),
                f"{row.cost.kv_bytes / 1e6:.1f} MB",
            ]
        else:
            sizes = [f"{ratio[key]:.2f}x" for key in ("prefill", "flops", "kv_bytes")]
        times = (
            f"{statistics.fmean(row.first) * 1e3:.0f} ms",
            f"{statistics.fmean(row.further) * 1e3:.1f} ms",
        )
        shown = [_with_ratio(text, row, part) for text, part in zip(times, PARTS, strict=True)]
        out.add(row.spec, f"{row.kept:.0%}", *sizes, *shown)
    return out


def _with_ratio(time: str, row: Contestant, part: str) -> str:
    """A time with its ratio to the first row, marked where that lies above its cap."""
    found = row.ratio(part)
    if time.startswith("nan"):  # one new token comes out of the prefill, and none is decoded
        return "-"
    return time if found is None else f"{time} {found[0]:.2f}x{ABOVE * (part in row.exceeded)}"


def print_premise(found: Premise) -> None:
    """A row per layer, and what is wrong with them in plain words."""
    names = ("tau with the layer before", *(f"common in top {share:.1%}" for share in SHARES))
    columns = (*names, "mean tau", f"tokens with {MASS:.0%} of the score")
    table = Sheet("layer", columns, title="does every layer rank the visual tokens alike?")
    others = (found.tau.sum(1) - 1) / max(1, len(found.tau) - 1)
    for layer in range(len(found.tau)):
        near = [""] * len(names)
        if layer:
            common = (found.overlap[share][layer, layer - 1] for share in SHARES)
            near = [f"{found.tau[layer, layer - 1]:.2f}", *(f"{100 * c:.0f} %" for c in common)]
        share = found.essential.mean(0)[layer]
        essential = "" if np.isnan(share) else f"{100 * share:.1f} %"
        table.add(str(layer), *near, f"{others[layer]:.2f}", essential)
    console.print(table)
    said = found.warnings()
    for line in said:
        console.print(f"[yellow]warning:[/yellow] {line}", highlight=False)
    if not said:
        console.print(
            "the premise of G-Search holds here: rankings agree, and essential counts do not grow"
        )
