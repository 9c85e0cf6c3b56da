"""Writes docs/results.md, and its plot, from the reports of `foveate eval` in docs/results/."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from foveate.eval.tasks import TITLES
from foveate.explore.pareto import lines, plot_pareto
from readings import LOOKS, OWN, READING

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "docs" / "results", ROOT / "docs" / "results.md"
KEYS = {title: key for key, title in TITLES.items()}
SHOWN = {title: KEYS[title] for title in ("object recall", "object precision", "CIDEr")} | {
    "questions": "questions exact"
}
ASKED = {  # of the tables of short answers
    kind: KEYS[kind] for kind in ("color", "shape", "count", "existence", "position", "relation")
} | {"all": "questions exact", "easy-vqa": KEYS["easy-vqa"]}
BUDGETS = ("0.5", "0.25", "0.125")
SEARCH = ("gsearch", *BUDGETS)
INTRODUCTION = """# Methods compared

The pictures are held out, from number 3,000 of the test split on, and the same for every row of a table. The
brackets have the paired difference to the unpruned model on the same pictures with its 95 % bootstrap interval.
It is bold where the interval excludes 0.

| column | meaning, relative to the unpruned model |
|---|---|
| tokens | visual tokens per prefill layer |
| FLOPs | prefill and decode, as really run, without ranking |
| KV | bytes of keys and values at the end |
| agreement | share of answers that equal the unpruned model's to the letter |

`python benchmarks/report.py` renders this page from `docs/results/`.

**In short**

- **Selection before the language model wins.** On `scenes`, diversity (DivPrune, CDPruner) and merging (ToMe,
  DyMU) keep descriptions whole down to a quarter of the tokens. Random tokens keep half of the objects. On `smol`
  at a quarter, methods that select before the language model and mergers lose no objects measurable on 12
  pictures. Random selection loses half of the objects, FastV 40 %, VTW all of them.
- **Deep cuts by attention destroy long descriptions** on `scenes`: PyramidDrop, VScan's second stage, VTW.
- **G-Search** with tokens ranked by diversity cuts FLOPs 2.2 times on `scenes` with no loss of objects (1.5
  points either way). On `smol` it cuts them 2.5 times and finds as many objects, but fewer of those named are
  right. The ranking, and cutting before the first layers, matter more than the shape over depth.
- **DyRate's adapting pays where tokens are scarce.** At a third of the FLOPs on `scenes` it has 24 points of
  CIDEr more than the same mean rate for all (10 to 39, of 419), and loses 1.7 points of objects for it. A fixed
  cut by the last token's attention before layer 1 does as well. None holds CIDEr at that budget: the best loses
  32.
- **Weights help most of all**, and are in none of these tables: see [weighted tokens](weighting.md).
"""
MODELS = {
    "smol": """## On `smol`

`smol` is a language model of 135 M parameters (SmolLM2-135M-Instruct) with our tower and projector. It has 256
visual tokens per picture and 30 layers. It is short of its goals: unpruned, it describes 83 % of objects right.
So the tables show differences in what it can do at all.
""",
    "scenes": """## On `scenes`

`scenes` is a small LLaVA that knows a world of drawn scenes and nothing else. **Do not carry its figures over to
large models.** Rows of `vscan1` are of its former order, the global scan first. It is the local one now, as in
its authors' code.
""",
}
WORK = {"tokens": "tokens", "FLOPs": "flops", "KV": "bytes"}
SPLIT = {
    "tokens": "tokens",
    "prefill": "prefill",
    "decode": "decode",
    "FLOPs": "flops",
    "KV": "bytes",
}  # of DyRate's
SEEN = {"prunes": "What it keeps, step by step", "rate": "Alive at each step"}
_WHOLE = "pictures: a description, a caption and a question of each"
_SHORT = "questions on drawn pictures, and as many of easy-vqa"
PLOTS = {
    "pareto": ("Quality against tokens", tuple(f"zoo-{budget}" for budget in BUDGETS)),
    "pareto-search": (
        "Searched schedules against tokens",
        tuple(f"search-{name}" for name in SEARCH),
    ),
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
    return f"{found} ({gap(figure['difference'])})"


def table(body: dict[str, Any], shown: dict[str, str], work: dict[str, str]) -> list[str]:
    """Methods down, figures across, the best in the first figure first after the unpruned model."""
    heads = [*shown, "agreement", *work]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    first = next(iter(shown.values()))
    order = sorted(
        body["methods"].items(),
        key=lambda m: (m[0] != "unpruned", -m[1]["figures"][first]["value"]),
    )
    for name, found in order:
        figures = found["figures"]
        same = f"{figures['agreement']['value']:.0f} %" if "agreement" in figures else ""
        cells = [cell(figures[key]) for key in shown.values()]
        spent = [f"{found['work'][key]:.3f}" for key in work.values()]
        lines.append(f"| `{name}` | {' | '.join([*cells, same, *spent])} |")
    return lines


def gap(d: dict[str, float]) -> str:
    """A difference with its interval, bold where that leaves out 0."""
    said = f"{d['value']:+.1f}, {d['low']:.1f} to {d['high']:.1f}"
    return f"**{said}**" if d["low"] > 0 or d["high"] < 0 else said


def beside(body: dict[str, Any], shown: dict[str, str]) -> list[str]:
    """What every other method has more, or less, than the one that the table is about."""
    other = body["against"]
    lines = [f"| less `{other}` | {' | '.join(shown)} | FLOPs |", "|---" * (len(shown) + 2) + "|"]
    for name, found in body["methods"].items():
        if name not in ("unpruned", other):
            cells = [gap(found["figures"][key]["against"]) for key in shown.values()]
            lines.append(f"| `{name}` | {' | '.join(cells)} | {found['work']['flops']:.3f} |")
    return lines


def sections(model: str) -> list[str]:
    """What was measured on a model; `zoo-0.5-smol.json` is of `smol`, `zoo-0.5.json` of `scenes`."""
    parts: list[str] = []
    for name, reading in READING.items():
        body = report(stored(name, model))
        if body is None:
            continue
        if name == "adapting":
            parts += [OWN.get(stored(name, model), reading), *adapted(body)]
            continue
        asked = name.endswith("asked")
        shown = ASKED if asked else SHOWN
        each = body["samples"] // (2 if asked else 3)
        of = _SHORT if asked else _WHOLE
        said = OWN.get(stored(name, model), reading).replace("{model}", model)
        parts += [f"{said}\n{each} {of}.\n"]
        parts += ["\n".join(table(body, shown, SPLIT if name.startswith("dyrate") else WORK)), ""]
        parts += ["\n".join(beside(body, shown)), ""] if body.get("against") else []
    pictures = {
        name: title
        for name, (title, reports) in PLOTS.items()
        if any(report(stored(r, model)) for r in reports)
    }
    for name, title in (pictures | {f"dyrate-{key}": title for key, title in SEEN.items()}).items():
        if (RESULTS / f"{stored(name, model)}.png").is_file() or name in pictures:
            parts += [f"## {title}\n", f"![{title.lower()}](results/{stored(name, model)}.png)", ""]
    return parts


def adapted(body: dict[str, Any]) -> list[str]:
    """A predictor's choices beside its controls: cross-entropy, FLOPs, and what each kind of prompt keeps and loses."""
    kinds = list(body["tables"][0]["sweep"][0]["losses"])
    rows = [f"| | cross-entropy | FLOPs | {' | '.join(kinds)} |", "|---" * (len(kinds) + 3) + "|"]
    whole = body["tables"][0]["sweep"][0]["losses"].values()
    first = body["tables"][0]["unpruned"]
    rows.append(
        f"| unpruned | {first:.3f} | 1.000 | {' | '.join(f'100%: {loss:.3f}' for loss in whole)} |"
    )
    for name, found in (pair for grid in body["tables"] for pair in grid["predictors"].items()):
        for label, line in found["lines"].items():
            title, said = label, f"{line['loss']:.3f}"
            if label == "predictor":
                d = found["predictor less one rate"]
                title, said = (
                    f"`{name}`",
                    f"{said} ({d['value']:+.3f}, {d['low']:.3f} to {d['high']:.3f})",
                )
            each = (f"{line['keep'][kind]:.0%}: {line['losses'][kind]:.3f}" for kind in kinds)
            rows.append(f"| {title} | {said} | {line['flops']:.3f} | {' | '.join(each)} |")
    return [f"{body['answers']} answers.\n", *rows, ""]


def looks(body: dict[str, Any]) -> list[str]:
    """Methods down, the figures of `TITLES` across, each with its 95 % interval."""
    keys = [key for key in TITLES if key in next(iter(body["methods"].values()))["figures"]]
    rows = [f"| | {' | '.join(TITLES[key] for key in keys)} |", "|---" * (len(keys) + 1) + "|"]
    for name, found in body["methods"].items():
        cells = [
            cell({k: found["figures"][key][k] for k in ("value", "low", "high")}) for key in keys
        ]
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    said = LOOKS.replace("{pictures}", str(body["pictures"])).replace(
        "{source}", body.get("source", "")
    )
    return [said, *rows, ""]


def stored(name: str, model: str) -> str:
    """The name of a model's report or plot."""
    return name if model == "scenes" else f"{name}-{model}"


def render() -> str:
    """The page."""
    parts = [INTRODUCTION]
    for model, heading in MODELS.items():
        seen = (
            report(stored("methods", model)) if model != "scenes" else None
        )  # those of scenes are in the README
        found = [*([] if seen is None else looks(seen)), *sections(model)]
        parts += [heading, *(deeper(part) for part in found)] if found else []
    return "\n".join(parts)


def deeper(part: str) -> str:
    """Text with its headings one level deeper, since models head the page's sections."""
    return re.sub(r"^(#+) ", r"#\1 ", part, flags=re.MULTILINE)


def draw() -> None:
    """Object recall against the share of tokens, for every method of the zoo, and of the searches."""
    for model in MODELS:
        for name, (title, reports) in PLOTS.items():
            bodies = [
                body for body in (report(stored(one, model)) for one in reports) if body is not None
            ]
            if bodies:
                found = lines(bodies, SHOWN["object recall"], "tokens")
                path = RESULTS / f"{stored(name, model)}.png"
                plot_pareto(found, "object recall, %", "tokens", f"{model}: {title.lower()}", path)


def main() -> int:
    """Rewrites page and plot."""
    PAGE.write_text(render())
    draw()
    return 0


if __name__ == "__main__":
    sys.exit(main())
