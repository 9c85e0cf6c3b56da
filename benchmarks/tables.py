"""Writes the measured figures of docs/results/*.json into README.md and the model card, between their result marks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
CARDS = {name: ROOT / "src" / "foveate" / "models" / name / "README.md" for name in ("scenes", "smol")}
BEGIN, END = "<!-- results -->", "<!-- /results -->"


def read(name: str) -> dict[str, Any]:
    """A result file."""
    return json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text())


def quality(body: dict[str, Any]) -> list[str]:
    """Figures down, methods across."""
    methods = body["methods"]
    keys = list(dict.fromkeys(key for m in methods.values() for key in m["figures"]))
    lines = [f"| | {' | '.join(f'`{m}`' for m in methods)} |", "|---" * (len(methods) + 1) + "|"]
    for key in keys:
        cells = []
        for m in methods.values():
            unit = 1 if key == "CIDEr" else 100
            low, high = m["intervals"][key]
            cells.append(f"{m['figures'][key] * unit:.1f} ({low * unit:.1f}-{high * unit:.1f})")
        lines.append(f"| {key} | {' | '.join(cells)} |")
    return lines


def by_method(body: dict[str, Any]) -> list[str]:
    """Methods down, figures across."""
    keys = list(dict.fromkeys(key for m in body["methods"].values() for key in m["figures"]))
    lines = [f"| | {' | '.join(keys)} |", "|---" * (len(keys) + 1) + "|"]
    for name, m in body["methods"].items():
        cells = []
        for key in keys:
            unit, (low, high) = 1 if key == "CIDEr" else 100, m["intervals"][key]
            cells.append(f"{m['figures'][key] * unit:.1f} ({low * unit:.0f}-{high * unit:.0f})")
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return lines


def prefill(body: dict[str, Any]) -> list[str]:
    """Measured ratios beside their caps."""
    lines = ["| | prefill | times faster | FLOPs cap | of the cap |", "|---|---|---|---|---|"]
    for name, row in body["prefill"].items():
        time, figures = f"{row['seconds'] * 1e3:.0f} ms", f"{row['ratio']:.2f} | {row['cap']:.2f} | {row['of_cap']:.0%}"
        lines.append(f"| `{name}` | {time} | {figures} |")
    return lines


def decode(body: dict[str, Any]) -> list[str]:
    """Decode steps by method, then by cache."""
    lines = ["| decode | per token | times faster |", "|---|---|---|"]
    parts = {"after that prefill": body["decode"], **body["cache"]}
    for where, found in parts.items():
        for name, row in found.items():
            lines.append(f"| {where}: `{name}` | {row['seconds'] / 8 * 1e3:.1f} ms | {row['ratio']:.3f} |")
    return lines


def of_the_model(report: dict[str, Any]) -> list[str]:
    """A bundled model's report."""
    named = "" if report["model"] == "scenes" else f"--model {report['model']} "
    return [
        f"{report['pictures']} test scenes and {report['easy_vqa_pictures']} pictures of easy-vqa's test split "
        f"(`foveate demo evaluate {named}--first {report['first']} --pictures {report['pictures']} --easy-vqa "
        f"{report['easy_vqa_pictures']}`), in % "
        "with 95 % bootstrap intervals (CIDEr x 100). An object counts as right if size, texture, colour, shape and "
        "place all are:",
        "",
        *quality(report),
    ]


def render() -> str:
    """The README's part between the marks."""
    methods, speed = read("methods"), read("prefill")
    lines = [
        *("## Results", "", "All by `make results` (`make results-smol` for `smol`), on held-out seeds.", ""),
        *(line for name in CARDS for line in (f"**{name}**, unpruned:", "", *of_the_model(read(name)), "")),
        *(f"**Methods on scenes**, {methods['pictures']} test scenes:", "", *by_method(methods), ""),
        f"**Speed**, random weights of shape `{speed['shape']}`, batch {speed['batch']}, 64 text and 576 visual "
        f"tokens, {speed['threads']} CPU threads ({speed['cpu']}), float32, sdpa, median of {speed['repeats']} "
        "interleaved repetitions (`python benchmarks/prefill.py`). The cap is the ratio of computed FLOPs:",
        *("", *prefill(speed), "", *decode(speed)),
    ]
    return "\n".join([BEGIN, *lines, END])


def render_card(name: str) -> str:
    """The part between the marks of a bundled model's card."""
    return "\n".join([BEGIN, "## Results", "", *of_the_model(read(name)), END])


def main() -> int:
    """Rewrites the files; 1 if the marks are missing."""
    for path, part in ((README, render()), *((path, render_card(name)) for name, path in CARDS.items())):
        text = path.read_text()
        if BEGIN not in text or END not in text:
            print(f"{path} lacks {BEGIN} or {END}", file=sys.stderr)
            return 1
        path.write_text(text[: text.index(BEGIN)] + part + text[text.index(END) + len(END) :])
    return 0


if __name__ == "__main__":
    sys.exit(main())
