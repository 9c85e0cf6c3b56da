"""Writes docs/results.md, and its plot, from the reports of `foveate eval` in docs/results/."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from foveate.plots.canvas import save, subplots

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "docs" / "results", ROOT / "docs" / "results.md"
SHOWN = {
    "object recall": "descriptions object-recall",
    "object precision": "descriptions object-precision",
    "CIDEr": "captions cider",
    "questions": "questions exact",
}
ZOO = ("zoo-0.5", "zoo-0.25", "zoo-0.125")
CONTROLS = ("random", "downsample", "unpruned")
INTRODUCTION = """# Results

On the bundled model `scenes`, a small LLaVA that knows a world of drawn scenes and nothing else: **do not carry them
over to large models**. Held-out pictures from number 3,000 of the test split on, the same for every row. In brackets
the paired difference to the unpruned model on the same pictures with its 95 % bootstrap interval (bold where it leaves
out 0). Tokens: visual tokens that a layer of the prefill sees, over the unpruned model's. FLOPs: prefill and decode, as
really run, ranking left out; KV: bytes at the end. Rendered from `docs/results/` by `python benchmarks/report.py`.
"""
READING = {
    "zoo-0.5": """## Every method at half the tokens

`make results-zoo`: each method's `keep` (or the knob named) is set so that the layers of the prefill see half the
visual tokens on average.
""",
    "zoo-0.25": """## A quarter

Of eight layers, methods that begin at layer 2 or later cannot go so low; these decide before the decoder.
""",
    "zoo-0.125": """## An eighth
""",
    "dyrate-0.7": """## DyRate and its controls at equal FLOPs

`make results-dyrate`: a bundled predictor, named by its budget; its control in the step alone (`adapt=step`), which
keeps at each step what the predictor keeps on average; and fixed cuts before the same layer at about those FLOPs. The
predictors are those of `foveate train dyrate --budget 0.7` (or `0.5`) `--layer 2 --ranking mix --num-rates 20
--steps 120 --batch 6 --held-out 48`.

At 0.7 (met on its own kind of data, descriptions and captions; on these, with questions, it keeps more) the predictor
loses nothing, and nor does a fixed cut of the same ranking for less. It has learned not to drop while decoding.
""",
    "dyrate-0.5": """### At the budget 0.5

The predictor loses by far to a fixed cut of the same ranking: it goes on dropping while it decodes, and a description
needs every object until it was named. Against its control in the step alone it is ahead in objects by 5 points, whose
intervals overlap. That adapting to the input pays is shown at neither budget.
""",
}


def report(name: str) -> dict[str, Any] | None:
    """A report, if it was made."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def cell(figure: dict[str, Any]) -> str:
    """A figure with its paired difference."""
    found = f"{figure['value']:.1f}"
    if "difference" not in figure:
        return f"{found} ({figure['low']:.0f} to {figure['high']:.0f})"
    d = figure["difference"]
    delta = f"{d['value']:+.1f}, {d['low']:.1f} to {d['high']:.1f}"
    return f"{found} (**{delta}**)" if d["low"] > 0 or d["high"] < 0 else f"{found} ({delta})"


def table(body: dict[str, Any]) -> list[str]:
    """Methods down, figures across, best object recall first after the unpruned model."""
    lines = [f"| | {' | '.join(SHOWN)} | agreement | tokens | FLOPs | KV |", "|---" * (len(SHOWN) + 5) + "|"]
    recall = SHOWN["object recall"]
    order = sorted(body["methods"].items(), key=lambda m: (m[0] != "unpruned", -m[1]["figures"][recall]["value"]))
    for name, found in order:
        figures, work = found["figures"], found["work"]
        same = f"{figures['agreement']['value']:.0f} %" if "agreement" in figures else ""
        cells = [cell(figures[key]) for key in SHOWN.values()]
        spent = [f"{work[key]:.3f}" for key in ("tokens", "flops", "bytes")]
        lines.append(f"| `{name}` | {' | '.join([*cells, same, *spent])} |")
    return lines


def render() -> str:
    """The page."""
    parts = [INTRODUCTION]
    for name, reading in READING.items():
        body = report(name)
        if body is not None:
            each = body["samples"] // 3
            parts += [f"{reading}\n{each} pictures: a description, a caption and a question of each.\n"]
            parts += ["\n".join(table(body)), ""]
    return "\n".join([*parts, "## Quality against tokens\n", "![object recall against tokens](results/pareto.png)", ""])


def draw() -> None:
    """Object recall against the share of tokens, for every method of the zoo."""
    figure, axes = subplots(1, 1, (9, 6))
    lines: dict[str, list[tuple[float, float]]] = {}
    whole = 0.0
    for body in filter(None, map(report, ZOO)):
        for spec, found in body["methods"].items():
            name = "+".join(part.split(":keep=")[0].split(",keep=")[0] for part in spec.split("+"))
            name = name.split(":threshold=")[0].split(":scale=")[0]
            value = found["figures"][SHOWN["object recall"]]["value"]
            whole = value if spec == "unpruned" else whole
            lines.setdefault(name, []).append((found["work"]["tokens"], value))
    lines.pop("unpruned", None)
    markers = "osv^D<P"  # seven and ten: no pair of marker and colour comes twice
    for i, (name, points) in enumerate(sorted(lines.items())):
        control = name.startswith(CONTROLS)
        style = {"linestyle": "--" if control else "-", "color": "black" if control else f"C{i % 10}"}
        marker = {"random:layer=0": "*", "random:layer=2": "x"}.get(name, markers[i % 7])
        axes[0][0].plot(*zip(*sorted(points), strict=True), marker=marker, label=name, alpha=0.8, **style)
    axes[0][0].axhline(whole, color="gray", linewidth=0.8)
    axes[0][0].set(xlabel="visual tokens of the prefill, share of all", ylabel="object recall, %", ylim=(0, 100))
    axes[0][0].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, RESULTS / "pareto.png")


def main() -> int:
    """Rewrites page and plot."""
    PAGE.write_text(render())
    draw()
    return 0


if __name__ == "__main__":
    sys.exit(main())
