"""Writes docs/ablations.md from the reports of `make results-ablations` in docs/results/ablations/."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "docs" / "results" / "ablations", ROOT / "docs" / "ablations.md"
SHOWN = {"object recall": "descriptions object-recall", "CIDEr": "captions cider", "questions": "questions exact"}
WORK = {"FLOPs": "flops", "prefill": "prefill", "KV": "bytes", "new tokens": "new_tokens"}
INTRODUCTION = """# DyRate's ablations

`make results-ablations`, rendered by `python benchmarks/ablations.py`. Each table is one way of generating; its rows
are beside the unpruned model *generating the same way*: in brackets the paired difference with its 95 % bootstrap
interval, bold where it leaves out 0. FLOPs are of prefill and decode over that model's, all beams counted; without a
cache every step is a prefill. KV: bytes at the end. DP is `deeper=`: a further rate that grows with depth (fixed
pruning, FP, is without); `every=` decides only at every such step; `protect=unseen` lets go first what the answer has
looked at.
"""
READING = {
    "greedy": """`scenes-0.5` and its options; `ablation-free` is of the same budget, with a weight of its own for
each rate, `-rates-5` (tied, like `scenes-0.5`) chooses among five: on validation pictures it loses 0.005 nats
where `scenes-0.5` loses 0.013 and a fixed cut 0.016. Deciding while decoding costs a little and saves a quarter
of the KV bytes, but no FLOPs; at every fourth step it costs nothing. A further rate with depth (DP) takes
another tenth of the FLOPs for no loss of objects. **Protecting what the answer has not looked at is wrong
here**: it costs 40 points of objects. An object is looked at well before it has been named, and what is never
looked at is background.
""",
    "beams-2": "More beams lose no objects; CIDEr falls by what it falls under greedy search, or more (five beams).\n",
}
TITLES = {
    "greedy": "Greedy: FP and DP, steps, protection, and how the predictor was trained",
    "beams-2": "Two beams",
    "beams-5": "Five beams",
    "top-k": "Sampling, top-k",
    "top-p": "Sampling, top-p",
    "recompute": "Without a cache: every step prunes the whole prompt anew",
}


def cell(figure: dict[str, Any] | None) -> str:
    """A figure with its paired difference, or its interval."""
    if figure is None:
        return ""
    gap, value = figure.get("difference"), f"{figure['value']:.1f}"
    if gap is None:
        return f"{value} ({figure['low']:.0f} to {figure['high']:.0f})"
    text = f"{gap['value']:+.1f}, {gap['low']:.1f} to {gap['high']:.1f}"
    return f"{value} (**{text}**)" if gap["low"] > 0 or gap["high"] < 0 else f"{value} ({text})"


def table(body: dict[str, Any]) -> list[str]:
    """Methods down, figures across."""
    lines = [f"| | {' | '.join([*SHOWN, *WORK])} |", "|---" * (len(SHOWN) + len(WORK) + 1) + "|"]
    for name, found in body["methods"].items():
        figures = [cell(found["figures"].get(key)) for key in SHOWN.values()]
        work = ["-" if (v := found["work"][key]) is None else f"{v:.3f}" for key in WORK.values()]  # of no cache: no KV
        lines.append(f"| `{name}` | {' | '.join([*figures, *work])} |")
    return lines


def render() -> str:
    """The page, of the reports that were made."""
    parts = [INTRODUCTION]
    for name, title in TITLES.items():
        path = RESULTS / f"{name}.json"
        if path.is_file():
            body = json.loads(path.read_text())
            told = ", ".join(f"{key} {value}" for key, value in (body.get("decoding") or {}).items())
            parts += [f"## {title}\n", f"`{body['model']}`, {body['samples']} samples{'; ' if told else ''}{told}.\n"]
            parts += [READING[name]] if name in READING else []
            parts += ["\n".join(table(body)), ""]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(render())
    sys.exit(0)
