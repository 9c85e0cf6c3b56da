"""What `foveate tune` is worth: its promise put to the test, and its choice beside fixed methods, on unseen pictures.

python benchmarks/tuning.py guarantee FOLDER   # answers of `foveate eval --save FOLDER`: a population
python benchmarks/tuning.py page               # docs/guides/tuning.md, from docs/results/tuning-*.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from foveate.artefacts.tuned import SEARCHED, load_tuned
from foveate.core.method import Method
from foveate.eval.divergence import Divergence
from foveate.eval.intervals import difference, estimate
from foveate.eval.tasks import bundled
from foveate.files import read_text, write_text
from foveate.methods import parse, tuned
from foveate.models.load import load
from foveate.tune.setting.certificate import Promise
from foveate.tune.setting.finalists import Finalist, front, settled
from foveate.tune.setting.taught import Teacher
from foveate.tune.setting.wish import percent

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "guides" / "tuning.md"
TIMES = 1000
DRAWN = 300  # pictures of each repetition: half choose, half certify
NEAR = 0.03  # costs that count as equal
FIRST = 70000  # the first test picture
CHOSEN = "the choice"
RISKS = (0.01, 0.02, 0.05)
SHOWN = {
    "descriptions object-recall": "objects found",
    "descriptions object-precision": "objects right",
    "captions cider": "CIDEr",
    "questions exact": "questions",
    "questions/count exact": "counting",
}


def population(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Each method's losses by picture (the share of its answers that differ), and its FLOPs."""
    report = json.loads(read_text(folder / "report.json"))
    answers: dict[str, dict[str, str]] = {}
    for line in read_text(folder / "samples.jsonl").splitlines():
        row = json.loads(line)
        answers.setdefault(row["method"], {})[row["key"]] = row["answer"]
    plain = answers.pop("unpruned")
    losses = {}
    for method, said in answers.items():
        rows: dict[str, list[float]] = {}
        for key, answer in said.items():
            picture = key.rpartition("-")[0]  # questions/test-40000-color
            rows.setdefault(picture, []).append(float(answer != plain[key]))
        losses[method] = np.array([np.mean(row) for row in rows.values()])
    flops = {method: report["methods"][method]["work"]["flops"] for method in losses}
    return losses, flops


def repeated(
    losses: dict[str, np.ndarray], flops: dict[str, float], promise: Promise, seed: int = 0
) -> dict[str, Any]:
    """The whole choice on drawn pictures, again and again; what is true is known of all."""
    rng = np.random.default_rng(seed)
    truth = {method: float(values.mean()) for method, values in losses.items()}
    pictures = len(next(iter(losses.values())))
    chosen: dict[str, int] = {}
    broken = 0
    for _ in range(TIMES):
        drawn = rng.choice(pictures, DRAWN, replace=False)
        ours, theirs = drawn[: DRAWN // 2], drawn[DRAWN // 2 :]
        rivals = [Finalist(name, flops[name], values[ours]) for name, values in losses.items()]
        found = settled(
            front(rivals), lambda one, at=theirs: losses[one.spec][at], promise, binary=False
        )
        name = "unpruned" if found is None else found.spec
        chosen[name] = chosen.get(name, 0) + 1
        broken += found is not None and truth[found.spec] > promise.risk
    return {
        "risk": promise.risk,
        "confidence": promise.confidence,
        "repetitions": TIMES,
        "pictures": DRAWN,
        "broken": broken,
        "chosen": chosen,
        "truth": truth,
        "flops": flops,
    }


def guarantee(folder: Path) -> None:
    """Writes docs/results/tuning-guarantee.json."""
    losses, flops = population(folder)
    found = {
        "pictures": len(next(iter(losses.values()))),
        "runs": [repeated(losses, flops, Promise(risk)) for risk in RISKS],
    }
    write_text(RESULTS / "tuning-guarantee.json", json.dumps(found, indent=1) + "\n")


def unseen(model: str, path: Path, pictures: int) -> None:
    """Writes docs/results/tuning-unseen-MODEL.json: teacher forced, on pictures that no tuning has seen."""
    loaded, file = load(model), load_tuned(path)
    cost = file.certificate["cost"]
    near = [row for row in file.tried if not row["refused"] and abs(row["cost"] - cost) < NEAR]
    settings: dict[str, Method] = {CHOSEN: tuned(file)}
    settings |= {
        row["method"]: parse(row["method"])[0]
        for row in near
        if row["method"] not in (file.method, SEARCHED)
    }
    settings[f"schedule:{model}-gsearch-weighted"] = parse(f"schedule:{model}-gsearch-weighted")[0]
    tasks = bundled(["descriptions", "captions", "questions"], None, FIRST, pictures=pictures)
    samples = [tasks[i] for i in np.random.default_rng(0).permutation(len(tasks))[: 2 * pictures]]
    teacher = Teacher(loaded, settings)
    seen: dict[str, list[Divergence]] = {name: [] for name in settings}
    for at in range(0, len(samples), 8):
        for name, found in teacher.of(samples[at : at + 8], list(teacher.settings)):
            seen[name] += found
    groups = [sample.group for sample in samples]
    rows = {}
    for name, found in seen.items():
        if not found:
            continue
        parts, ours = (
            np.array([[100 * (1 - one.agreement), 1.0] for one in some])
            for some in (found, seen[CHOSEN])
        )
        rows[name] = {
            "words": asdict(estimate(parts, groups, mean)),
            "difference": asdict(difference(parts, ours, groups, mean)),
            "divergence": float(np.mean([one.kl for one in found])),
        }
    body = {
        "method": file.method,
        "cost": cost,
        "pictures": len(set(groups)),
        "examples": len(samples),
        "rows": rows,
    }
    write_text(RESULTS / f"tuning-unseen-{model}.json", json.dumps(body, indent=1) + "\n")


def mean(sums: np.ndarray) -> np.ndarray:
    """The first sum over the second."""
    return sums[..., 0] / sums[..., 1]


def page() -> None:
    """Renders the tables into the guide, between its markers."""
    text = read_text(PAGE)
    head, _, rest = text.partition("<!-- measured -->\n")
    tail = rest.partition("<!-- /measured -->")[2]
    parts = [*_promises(), *(line for model in ("scenes", "smol") for line in _beside(model))]
    body = "\n".join(parts)
    write_text(PAGE, f"{head}<!-- measured -->\n{body}\n<!-- /measured -->{tail}")


def _promises() -> list[str]:
    path = RESULTS / "tuning-guarantee.json"
    if not path.is_file():
        return []
    found = json.loads(read_text(path))
    lines = [
        f"**The promise, put to the test.** {found['pictures']} drawn pictures with their questions are the "
        f"population, so the true loss of every setting is known. {TIMES} times we drew {DRAWN} of them, chose on one "
        "half and certified on the other.",
        "",
        "| risk | confidence | promise broken | something cheaper certified |",
        "|---:|---:|---:|---:|",
    ]
    for run in found["runs"]:
        some = 1 - run["chosen"].get("unpruned", 0) / run["repetitions"]
        broken = run["broken"] / run["repetitions"]
        lines.append(
            f"| {percent(run['risk'])} | {percent(run['confidence'])} | {100 * broken:.1f} % of runs | "
            f"{100 * some:.0f} % of runs |"
        )
    return [*lines, ""]


def _beside(model: str) -> list[str]:
    """The choice beside fixed methods at its FLOPs, on other pictures."""
    report, file, other = (
        RESULTS / f"tuning-{part}-{model}.json" for part in ("eval", "setting", "unseen")
    )
    if not file.is_file():
        return []
    setting = json.loads(read_text(file))
    spent = setting["spent"]
    lines = [
        f"**`{model}`.** {setting['certificate']['sentence']} The setting: `{setting['method']}`, "
        f"{setting['certificate']['cost']:.2f} of the FLOPs. It took {spent['settings']} settings, "
        f"{spent['examples scored']:,} scored examples and {spent['answers']:,} answers.",
        "",
    ]
    if other.is_file():
        lines += _unseen(json.loads(read_text(other)))
    if not report.is_file():
        return lines
    found = json.loads(read_text(report))
    lines += [
        f"Answers on {found['pictures']} other pictures, as differences to the unpruned model with 95 % intervals:",
        "",
        "| method | FLOPs | " + " | ".join(SHOWN.values()) + " |",
        "|---|---:|" + "---:|" * len(SHOWN),
    ]
    for method, row in found["methods"].items():
        cells = [_cell(row["figures"].get(key)) for key in SHOWN]
        lines.append(f"| `{method}` | {row['work']['flops']:.3f} | {' | '.join(cells)} |")
    return [*lines, ""]


def _unseen(found: dict[str, Any]) -> list[str]:
    """The choice beside the best of what was tried at its cost, on pictures that no tuning has seen."""
    rows = sorted(found["rows"].items(), key=lambda row: row[1]["divergence"])
    shown = [row for row in rows if row[0] != CHOSEN][:5]
    lines = [
        f"Beside the best of what was tried at its cost and the bundled schedule, on {found['examples']} examples of "
        f"{found['pictures']} pictures that no tuning has seen: words that would be others, in %.",
        "",
        "| setting | words | less the choice's | divergence |",
        "|---|---:|---:|---:|",
    ]
    for name, row in [(CHOSEN, found["rows"][CHOSEN]), *shown]:
        words, gap = row["words"], row["difference"]
        less = (
            "" if name == CHOSEN else f"{gap['value']:+.2f} ({gap['low']:+.2f}, {gap['high']:+.2f})"
        )
        title = f"the choice, `{found['method']}`" if name == CHOSEN else f"`{name}`"
        lines.append(
            f"| {title} | {words['value']:.2f} ({words['low']:.2f}, {words['high']:.2f}) | {less} | "
            f"{row['divergence']:.4f} |"
        )
    return [*lines, ""]


def _cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    gap = found.get("difference")
    if gap is None:
        return f"{found['value']:.1f}"
    return f"{gap['value']:+.1f} ({gap['low']:+.1f}, {gap['high']:+.1f})"


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("guarantee").add_argument("folder", type=Path)
    other = commands.add_parser("unseen")
    other.add_argument("model")
    other.add_argument("file", type=Path)
    other.add_argument("--pictures", type=int, default=100)
    commands.add_parser("page")
    asked = parser.parse_args(argv)
    if asked.command == "guarantee":
        guarantee(asked.folder)
    if asked.command == "unseen":
        unseen(asked.model, asked.file, asked.pictures)
    page()


if __name__ == "__main__":
    main(sys.argv[1:])
