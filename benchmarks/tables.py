"""Writes the measured figures of docs/results/*.json where they are shown.

README.md and the model cards get them between marks; docs/baselines.md and docs/speed.md are written whole.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from foveate.cli.options import RECOMMENDED
from foveate.eval.tasks import TITLES

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
README = ROOT / "README.md"
CARDS = {
    name: ROOT / "src" / "foveate" / "models" / name / "README.md" for name in ("scenes", "smol")
}

READING = """At half the tokens from layer 2 on, FastV's ranking (the last prompt token's attention) loses 15 points of
the objects in descriptions. Random tokens lose as many, and evenly spread tokens lose 7. `ranking=mix` takes turns
between the last token's attention, the attention received, and an even spread: it loses nothing that 60 pictures can
show. Short questions suffer little under any of them. VTW destroys descriptions and questions of existence. Do not
carry these figures over to large models.
"""
SHARPER = "divprune:keep=0.125,weigh=nearest,merge=mean"
SEARCHED = "schedule:docs/results/search/scenes/gsearch-diverse-weighted-0.01.json"
TRAINED = "dyrate:predictor=scenes-0.2-weighted"
WHEN = {  # what is wanted -> the method, its part of the reports, and how it is called
    "A good default": (RECOMMENDED, "", RECOMMENDED),
    "Fewer tokens still": (SHARPER, "", SHARPER),
    "You have calibration data": (SEARCHED, "goals-", "schedule:scenes-gsearch-weighted"),
    "Prompts need different numbers of tokens": (TRAINED, "goals-", TRAINED),
}
LINKS = {SEARCHED: "docs/search.md", TRAINED: "docs/dyrate.md"}
SHOWN = {
    "object recall": "descriptions object-recall",
    "CIDEr": "captions cider",
    "questions": "questions exact",
}
COMPARED = {
    "scenes": (
        "unpruned",
        RECOMMENDED,
        "divprune:keep=0.25",
        "fastv:layer=2,keep=0.25",
        "random:layer=0,keep=0.25",
    ),
    "smol": ("unpruned", RECOMMENDED, "divprune:keep=0.25"),
}
TIMED = {
    "fastv:layer=2,keep=0.5": "prefill",
    "downsample:layer=0,keep=0.25": "prefill",
    "fastv:layer=2,keep=0.25": "decode",
}


def read(name: str) -> dict[str, Any]:
    """A result file."""
    return json.loads((RESULTS / f"{name}.json").read_text())


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


def render_baselines() -> str:
    """The page of the bundled models, and of the first methods on `scenes`."""
    methods = read("methods")
    parts = [
        "# Bundled models and first methods",
        "",
        "`make results` writes the figures of `scenes`, and `make results-smol` those of `smol`. All pictures are from "
        "the held-out test split. `python benchmarks/tables.py` renders this page.",
    ]
    for name in CARDS:
        parts += ["", f"## `{name}`, unpruned", "", *of_the_model(name)]
    return "\n".join(
        [
            *parts,
            "",
            "## Methods on `scenes`",
            "",
            f"{methods['pictures']} test scenes, in % with 95 % bootstrap intervals (CIDEr x 100).",
            "",
            *by_method(methods),
            "",
            READING,
        ]
    )


def render_speed() -> str:
    """The page of prefill and decode times."""
    speed = read("prefill")
    return "\n".join(
        [
            "# Speed",
            "",
            f"The model has random weights of shape `{speed['shape']}`. The request is batch {speed['batch']} with 64 "
            f"text and 576 visual tokens. The machine ran {speed['threads']} CPU threads ({speed['cpu']}), float32 and "
            f"sdpa, torch {speed['torch']} and transformers {speed['transformers']}. Times are the median of "
            f"{speed['repeats']} interleaved repetitions (`python benchmarks/prefill.py`). The cap is the ratio of "
            "computed FLOPs: no implementation can be faster.",
            "",
            '"plain again" is the baseline against itself. It shows the noise: a few per cent in the prefill, and 10 % '
            "in decoding.",
            "",
            "## Prefill",
            "",
            *prefill(speed),
            "",
            "## Decoding",
            "",
            "No method makes decoding faster at batch 1: each step reads all weights, whatever the cache holds. "
            '"our cache" is the engine without a method. It does not copy the whole cache at each token.',
            "",
            *decode(speed),
            "",
        ]
    )


def answered(model: str, part: str = "") -> dict[str, dict[str, Any]]:
    """Descriptions, captions and questions of `make results-weighting`, by method that answered all of them."""
    said, asked = (
        read(f"weighting-{part}{name}-{model}")["methods"] for name in ("answers", "questions")
    )
    return {
        spec: {
            "figures": found["figures"] | asked[spec]["figures"],
            "flops": found["work"]["flops"],
        }
        for spec, found in said.items()
        if spec in asked
    }


def gap(figure: dict[str, Any]) -> str:
    """The paired difference to the unpruned model with its interval, or the unpruned model's own value."""
    if "difference" not in figure:
        return f"{figure['value']:.1f}"
    d = figure["difference"]
    return f"{d['value']:+.1f} ({d['low']:.1f} to {d['high']:.1f})"


def cells(found: dict[str, Any]) -> str:
    """FLOPs, and what each kind of answer gains or loses."""
    return " | ".join(
        [f"{found['flops']:.2f}", *(gap(found["figures"][key]) for key in SHOWN.values())]
    )


def render_when() -> str:
    """The README's table of which method to take when; of the most pictures that were measured."""
    many = "many-" if (RESULTS / "weighting-many-answers-scenes.json").is_file() else None
    pictures = read(f"weighting-{many or ''}answers-scenes")["pictures"]
    questions = read(f"weighting-{many or ''}questions-scenes")["samples"]
    lines = [
        f"Quality is the difference to the unpruned model in points with its 95 % interval: {pictures:,} pictures and",
        f"{questions:,} questions on `scenes` ([how it was measured](docs/measuring.md)). FLOPs are relative",
        "to the unpruned model, the answer included.",
        "",
    ]
    lines += [
        f"| you want | method | FLOPs | {' | '.join(SHOWN)} |",
        "|---" * (3 + len(SHOWN)) + "|",
    ]
    fewer = []
    for want, (spec, part, said) in WHEN.items():
        link = f" ([guide]({LINKS[spec]}))" if spec in LINKS else ""
        found = answered("scenes", part if many is None else many)
        mark = ""
        if spec not in found:
            found, mark = answered("scenes", part), " (1)"
            fewer.append(part)
        lines.append(f"| {want}{mark} | `{said}`{link} | {cells(found[spec])} |")
    if fewer:
        pictures = read(f"weighting-{fewer[0]}answers-scenes")["pictures"]
        questions = read(f"weighting-{fewer[0]}questions-scenes")["samples"]
        lines += ["", f"(1) of {pictures:,} pictures and {questions:,} questions."]
    return "\n".join(lines)


def render() -> str:
    """The README's results: one table of quality, three rows of speed."""
    speed = read("prefill")
    lines = [f"| model | method | FLOPs | {' | '.join(SHOWN)} |", "|---" * (3 + len(SHOWN)) + "|"]
    for model, specs in COMPARED.items():
        found = answered(model)
        lines += [f"| `{model}` | `{spec}` | {cells(found[spec])} |" for spec in specs]
    lines += [
        "",
        f"Speed of random weights of shape `{speed['shape']}` on {speed['threads']} CPU threads, 576 visual tokens:",
        "",
        "| method | part | times faster | cap by FLOPs |",
        "|---|---|---|---|",
    ]
    for spec, part in TIMED.items():
        row = speed[part][spec]
        cap = f"{row['cap']:.2f}" if part == "prefill" else "1 at batch 1"
        lines.append(f"| `{spec}` | {part} | {row['ratio']:.2f} | {cap} |")
    return "\n".join(lines)


def render_card(name: str) -> str:
    """The results of a bundled model's card."""
    return "\n".join(["## Results", "", *of_the_model(name)])


BLOCKS = {  # (file, mark) -> what stands between the marks
    (README, "when"): render_when,
    (README, "results"): render,
    **{(path, "results"): partial(render_card, name) for name, path in CARDS.items()},
}
PAGES = {
    ROOT / "docs" / "baselines.md": render_baselines,
    ROOT / "docs" / "speed.md": render_speed,
}


def between(text: str, mark: str, part: str) -> str:
    """`text` with `part` between the marks.

    Raises:
        ValueError: the marks are missing.
    """
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    if begin not in text or end not in text:
        raise ValueError(f"expected {begin} and {end} in the file, and found one or none of them")
    return text[: text.index(begin)] + f"{begin}\n{part}\n" + text[text.index(end) :]


def main() -> int:
    """Rewrites the files; 1 if marks are missing."""
    for (path, mark), rendered in BLOCKS.items():
        try:
            path.write_text(between(path.read_text(), mark, rendered()))
        except ValueError as error:
            print(f"{path}: {error}", file=sys.stderr)
            return 1
    for path, rendered in PAGES.items():
        path.write_text(rendered())
    return 0


if __name__ == "__main__":
    sys.exit(main())
