"""Writes the measured figures of docs/results/*.json into README.md and the model card, between their result marks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from foveate.eval.tasks import TITLES

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
CARDS = {
    name: ROOT / "src" / "foveate" / "models" / name / "README.md" for name in ("scenes", "smol")
}
BEGIN, END = "<!-- results -->", "<!-- /results -->"


def read(name: str) -> dict[str, Any]:
    """A result file."""
    return json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text())


def quality(figures: dict[str, Any]) -> list[str]:
    """Figures of the unpruned model, one a line."""
    lines = ["| | `unpruned` |", "|---|---|"]
    for key, title in TITLES.items():
        if key in figures:
            lines.append(f"| {title} | {of(figures[key], '.1f')} |")
    return lines


def by_method(body: dict[str, Any]) -> list[str]:
    """Methods down, figures across."""
    methods = body["methods"]
    keys = [key for key in TITLES if key in next(iter(methods.values()))["figures"]]
    lines = [f"| | {' | '.join(TITLES[key] for key in keys)} |", "|---" * (len(keys) + 1) + "|"]
    for name, found in methods.items():
        lines.append(
            f"| `{name}` | {' | '.join(of(found['figures'][key], '.0f') for key in keys)} |"
        )
    return lines


def of(figure: dict[str, Any], ends: str) -> str:
    """A figure with its interval, whose ends are printed as `ends` says."""
    return f"{figure['value']:.1f} ({figure['low']:{ends}}-{figure['high']:{ends}})"


def prefill(body: dict[str, Any]) -> list[str]:
    """Measured ratios beside their caps."""
    lines = ["| | prefill | times faster | FLOPs cap | of the cap |", "|---|---|---|---|---|"]
    for name, row in body["prefill"].items():
        time, figures = (
            f"{row['seconds'] * 1e3:.0f} ms",
            f"{row['ratio']:.2f} | {row['cap']:.2f} | {row['of_cap']:.0%}",
        )
        lines.append(f"| `{name}` | {time} | {figures} |")
    return lines


def decode(body: dict[str, Any]) -> list[str]:
    """Decode steps by method, then by cache."""
    lines = ["| decode | per token | times faster |", "|---|---|---|"]
    parts = {"after that prefill": body["decode"], **body["cache"]}
    for where, found in parts.items():
        for name, row in found.items():
            lines.append(
                f"| {where}: `{name}` | {row['seconds'] / 8 * 1e3:.1f} ms | {row['ratio']:.3f} |"
            )
    return lines


def of_the_model(name: str) -> list[str]:
    """A bundled model's report: on drawn scenes, and on easy-vqa."""
    model = "" if name == "scenes" else f"--model {name} "
    scenes, easy = read(name), read("easy-vqa" if name == "scenes" else f"easy-vqa-{name}")
    drawn = f"--tasks descriptions,captions,questions --first 1000 --pictures {scenes['pictures']}"
    both = [report["methods"]["unpruned"]["figures"] for report in (scenes, easy)]
    return [
        f"{scenes['pictures']} test scenes (`foveate eval {model}{drawn}`) and {easy['pictures']} pictures of "
        f"easy-vqa's test split (`foveate eval {model}--tasks easy-vqa --pictures {easy['pictures']}`), both with "
        "`--tokenizer words`, in % with 95 % bootstrap intervals over pictures (CIDEr x 100). An object counts as "
        "right if size, texture, colour, shape and place all are.",
        "",
        *quality(both[0] | both[1]),
    ]


def render() -> str:
    """The README's part between the marks."""
    methods, speed = read("methods"), read("prefill")
    lines = [
        *(
            "## Results",
            "",
            "All by `make results` (`make results-smol` for `smol`), on held-out seeds.",
            "",
        ),
        *(
            line
            for name in CARDS
            for line in (f"**{name}**, unpruned:", "", *of_the_model(name), "")
        ),
        *(
            f"**Methods on scenes**, {methods['pictures']} test scenes:",
            "",
            *by_method(methods),
            "",
        ),
        f"**Speed**, random weights of shape `{speed['shape']}`, batch {speed['batch']}, 64 text and 576 visual "
        f"tokens, {speed['threads']} CPU threads ({speed['cpu']}), float32, sdpa, median of {speed['repeats']} "
        "interleaved repetitions (`python benchmarks/prefill.py`). The cap is the ratio of computed FLOPs:",
        *("", *prefill(speed), "", *decode(speed)),
    ]
    return "\n".join([BEGIN, *lines, END])


def render_card(name: str) -> str:
    """The part between the marks of a bundled model's card."""
    return "\n".join([BEGIN, "## Results", "", *of_the_model(name), END])


def main() -> int:
    """Rewrites the files; 1 if the marks are missing."""
    for path, part in (
        (README, render()),
        *((path, render_card(name)) for name, path in CARDS.items()),
    ):
        text = path.read_text()
        if BEGIN not in text or END not in text:
            print(f"{path} lacks {BEGIN} or {END}", file=sys.stderr)
            return 1
        path.write_text(text[: text.index(BEGIN)] + part + text[text.index(END) + len(END) :])
    return 0


if __name__ == "__main__":
    sys.exit(main())
