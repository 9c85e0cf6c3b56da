"""Tables that several commands print."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from rich import box
from rich.table import Table

from ..timing.comparison import Row
from .output import flops


def compared(rows: Sequence[Row]) -> Table:
    """Kept tokens, FLOPs, KV cache and time of each row; beside the first, as ratios to it. Fits 80 columns."""
    legend = "x: of unpruned FLOPs and KV cache, computed; times faster, measured here"
    out = Table(caption=legend, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    out.add_column("method", overflow="fold")
    for column in ("kept", "prefill", "FLOPs", "KV", "first token", "per token"):
        out.add_column(column, justify="right", no_wrap=True)
    base = rows[0]
    before, after = statistics.fmean(base.first), statistics.fmean(base.further)
    for row in rows:
        ratio = row.cost.ratio(base.cost)
        first, further = statistics.fmean(row.first), statistics.fmean(row.further)
        single = math.isnan(further)  # one new token comes out of the prefill, and no time is spent per token
        if row is base:
            sizes = [flops(row.cost.prefill), flops(row.cost.flops), f"{row.cost.kv_bytes / 2**20:.1f} MB"]
            times = [f"{first * 1e3:.0f} ms", "-" if single else f"{further * 1e3:.1f} ms"]
        else:
            sizes = [f"{ratio[key]:.2f}x" for key in ("prefill", "flops", "kv_bytes")]
            times = [
                f"{first * 1e3:.0f} ms {before / first:.2f}x",
                "-" if single else f"{further * 1e3:.1f} ms {after / further:.2f}x",
            ]
        out.add_row(row.spec.replace(",", ", "), f"{row.kept:.0%}", *sizes, *times)
    return out
