"""Writes docs/ablations.md from the reports of `make results-ablations` in docs/results/ablations/.

Folders of predictors as arguments: what their trainings reported is written there first.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "docs" / "results" / "ablations", ROOT / "docs" / "ablations.md"
SHOWN = {
    "object recall": "descriptions object-recall",
    "CIDEr": "captions cider",
    "questions": "questions exact",
}
WORK = {"FLOPs": "flops", "prefill": "prefill", "KV": "bytes", "new tokens": "new_tokens"}
INTRODUCTION = """# DyRate's ablations

`make results-ablations` measures these tables, and `python benchmarks/ablations.py` renders them. Each table is
one way of generating. Its rows are compared with the unpruned model *generating the same way*. The brackets have
the paired difference with its 95 % bootstrap interval, bold where it excludes 0.

FLOPs are of prefill and decode, relative to that model, with all beams counted. Without a cache every step is a
prefill. KV is bytes at the end.

| option | meaning |
|---|---|
| `deeper=` | depth-based pruning (DP): a further rate that grows with depth; fixed pruning (FP) is without |
| `every=` | decides only at every such step |
| `protect=unseen` | what the answer has looked at leaves first |
"""
TRAINED = """This is what the trainings for a third of the FLOPs reported of 95 held-out answers. Cross-entropy is
in nats, each answer's mean over its words. The table also has that of one rate for all at the same FLOPs, and
that of the best rate of each answer in hindsight. `exact` learns from every answer at every rate. `masks` learns
through soft masks, as the paper does. 95 answers are few for such losses: on 296 others `scenes-0.33` has 0.143,
and one rate for all 0.181 ([results](results.md)).
"""
READING = {
    "greedy": """`scenes-0.33` decides once. The first rows below the unpruned model are its options, the others
are other trainings for the same budget. Thirty pictures cannot separate methods that differ by less than some 40
points of CIDEr.

- **Learning from all rates (`scenes-0.33`, `-kl`) is worth 70 points of CIDEr over the paper's soft masks**
  (`-masks`): 351 and 357 against 279. Masks give descriptions most tokens. KL in addition to cross-entropy
  changes nothing that 30 captions show.
- Deciding while decoding, with a predictor that was trained to decide once, costs 59 points of CIDEr and 4 of
  objects. It saves a third of the KV bytes but no FLOPs.
- A further rate with depth (DP) of a quarter destroys descriptions: there are no tokens to spare at this budget.
- **Protecting what the answer has not looked at is wrong here.** It costs a further 30 points of objects. An
  object is looked at well before it is named, and what is never looked at is background.
""",
    "recompute": """FLOPs are relative to an unpruned model without a cache, whose every step is a prefill too.
Quality is that of `decode=true` with a cache.
""",
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
        work = [
            "-" if (v := found["work"][key]) is None else f"{v:.3f}" for key in WORK.values()
        ]  # of no cache: no KV
        lines.append(f"| `{name}` | {' | '.join([*figures, *work])} |")
    return lines


def trained(folders: list[Path]) -> dict[str, Any]:
    """What each training reported of held-out answers, by the name of its folder."""
    found = {}
    for folder in folders:
        card = json.loads((folder / "predictor.json").read_text())
        held, plan = card["training"]["held out"], card["training"]["plan"]
        kept = held["kept_by_step"]
        found[folder.name] = {
            "learned": "exact" if plan["exact"] else "masks",
            "decides": "every step" if card["decode"] else "once",
            "rates": len(card["rates"]),
            "layer": card["layer"],
            "ranking": card["ranking"],
            "kl": plan["kl"],
            "FLOPs": held["ratio"],
            "cross-entropy": held["loss"],
            "one rate for all": held["fixed_loss"],
            "in hindsight": held["hindsight_loss"],
            "unpruned": held["unpruned_loss"],
            "kept first": kept[0],
            "kept last": kept[-1],
        }
    return found


def training_table() -> list[str]:
    """Trainings down."""
    path = RESULTS / "trained.json"
    if not path.is_file():
        return []
    rows = json.loads(path.read_text())
    columns = list(next(iter(rows.values())))
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = [
            f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return ["## How a predictor is trained\n", TRAINED, "\n".join(lines), ""]


def render() -> str:
    """The page, of the reports that were made."""
    parts = [INTRODUCTION, *training_table()]
    for name, title in TITLES.items():
        path = RESULTS / f"{name}.json"
        if path.is_file():
            body = json.loads(path.read_text())
            told = ", ".join(
                f"{key} {value}" for key, value in (body.get("decoding") or {}).items()
            )
            parts += [
                f"## {title}\n",
                f"`{body['model']}`, {body['samples']} samples{'; ' if told else ''}{told}.\n",
            ]
            parts += [READING[name]] if name in READING else []
            parts += ["\n".join(table(body)), ""]
    return "\n".join(parts)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        (RESULTS / "trained.json").write_text(
            json.dumps(trained([Path(name) for name in sys.argv[1:]]), indent=1)
        )
    PAGE.write_text(render())
    sys.exit(0)
