"""Tables that several commands print."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
from rich import box
from rich.table import Table

from ..timing.comparison import Contestant
from ..tune.search.premise import MASS, SHARES, Premise
from .output import console, flops


def compared(rows: Sequence[Contestant]) -> Table:
    """Kept tokens, FLOPs, KV cache and time of each row; beside the first, as ratios to it. Fits 80 columns."""
    legend = "x: of unpruned FLOPs and KV cache, computed; times faster, measured here"
    out = Table(caption=legend, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    out.add_column("method", overflow="fold")
    for column in ("kept", "prefill", "FLOPs", "KV", "first token", "per token"):
        out.add_column(column, justify="right", no_wrap=True)
    base = rows[0]
    before = statistics.fmean(base.first)
    after = statistics.fmean(base.further)
    for row in rows:
        ratio = row.cost.ratio(base.cost)
        first = statistics.fmean(row.first)
        further = statistics.fmean(row.further)
        single = math.isnan(
            further
        )  # one new token comes out of the prefill, and no time is spent per token
        if row is base:
            sizes = [
                flops(row.cost.prefill),
                flops(row.cost.flops),
                f"{row.cost.kv_bytes / 2**20:.1f} MB",
            ]
            times = [f"{first * 1e3:.0f} ms", "-" if single else f"{further * 1e3:.1f} ms"]
        else:
            sizes = [f"{ratio[key]:.2f}x" for key in ("prefill", "flops", "kv_bytes")]
            times = [
                f"{first * 1e3:.0f} ms {before / first:.2f}x",
                "-" if single else f"{further * 1e3:.1f} ms {after / further:.2f}x",
            ]
        spec = row.spec.replace(":", ": ").replace(",", ", ")  # where lines may break
        out.add_row(spec, f"{row.kept:.0%}", *sizes, *times)
    return out


def print_premise(found: Premise) -> None:
    """A row per layer, and what is wrong with them in plain words."""
    title = "does every layer rank the visual tokens alike?"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    names = (
        "layer",
        "tau with the layer before",
        *(f"common in top {s:.1%}" for s in SHARES),
        "mean tau",
    )
    for name in (*names, f"tokens with {MASS:.0%} of the score"):
        table.add_column(name, justify="right")
    others = (found.tau.sum(1) - 1) / max(1, len(found.tau) - 1)
    for layer in range(len(found.tau)):
        first = layer == 0
        near = ["", *("" for _ in SHARES)] if first else [f"{found.tau[layer, layer - 1]:.2f}"]
        near += (
            [] if first else [f"{100 * found.overlap[s][layer, layer - 1]:.0f} %" for s in SHARES]
        )
        share = found.essential.mean(0)[layer]
        table.add_row(
            str(layer),
            *near,
            f"{others[layer]:.2f}",
            "" if np.isnan(share) else f"{100 * share:.1f} %",
        )
    console.print(table)
    said = found.warnings()
    for line in said:
        console.print(f"[yellow]warning:[/yellow] {line}", highlight=False)
    if not said:
        console.print(
            "the premise of G-Search holds here: rankings agree, and essential counts do not grow"
        )
