"""DyRate beside FastV, VTW and its controls at equal FLOPs: quality, FLOPs, KV bytes, and paired differences."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foveate import load
from foveate.core.method import Method
from foveate.demo import evaluate
from foveate.demo.evaluate import Question
from foveate.engine.adapters import adapter_for
from foveate.measure.cost import Cost, Shapes, cost_of_trace, shapes
from foveate.measure.matching import keep_for
from foveate.methods import fastv, parse
from foveate.predictors.store import from_pretrained


def contestants(predictor: str, shape: Shapes, ratio: float, sizes: dict[str, int]) -> dict[str, list[Method]]:
    """The methods by name; those at equal FLOPs keep what costs `ratio`."""
    _, card = from_pretrained(predictor)
    layer, half = card.layer, len(shape.layers) // 2
    found = {
        "unpruned": [],
        "fastv:layer=2,keep=0.5": parse("fastv:layer=2,keep=0.5"),
        "fastv:layer=3,keep=0.5": parse("fastv:layer=3,keep=0.5"),
        f"vtw:layer={half}": parse(f"vtw:layer={half}"),
        f"dyrate:predictor={predictor}": parse(f"dyrate:predictor={predictor}"),
        f"dyrate:predictor={predictor},adapt=step": parse(f"dyrate:predictor={predictor},adapt=step"),
    }
    for ranking in dict.fromkeys((card.ranking, "last", "received", "mix", "random", "even")):

        def make(keep: float, ranking: Any = ranking) -> Sequence[Method]:
            return [fastv(layer=layer, keep=keep, ranking=ranking)]

        keep = keep_for(shape, make, ratio, **sizes)
        found[f"fixed: {make(keep)[0].name}"] = list(make(keep))
    return found


def run(loaded: Any, asked: list[Question], methods: list[Method], shape: Shapes) -> tuple[Any, Cost, list[str]]:
    """The report, the cost of all answers, and the answers."""
    traces: list[Any] = []
    answers = evaluate.answer(*loaded, asked, methods, traces=traces)
    cost = sum((cost_of_trace(shape, trace) for trace in traces), Cost())
    return evaluate.judge("", asked, answers), cost, answers


def difference(asked: list[Question], ours: list[str], plain: list[str], seed: int = 0) -> tuple[float, float, float]:
    """Object recall minus the unpruned model's, paired by picture, with a 95 % bootstrap interval."""
    described = [i for i, q in enumerate(asked) if q.kind == "description"]
    parts = np.array(
        [[_right(ours[i], asked[i]), _right(plain[i], asked[i]), _there(asked[i])] for i in described], dtype=float
    )
    rng = np.random.default_rng(seed)
    draws = parts[rng.integers(len(parts), size=(2000, len(parts)))].sum(1)
    deltas = (draws[:, 0] - draws[:, 1]) / draws[:, 2]
    total = parts.sum(0)
    low, high = np.quantile(deltas, [0.025, 0.975])
    return float((total[0] - total[1]) / total[2]), float(low), float(high)


def _right(answer: str, question: Question) -> int:
    return evaluate._matches(answer, question.references[0])[0]


def _there(question: Question) -> int:
    return evaluate._matches("", question.references[0])[2]


def main() -> None:
    """Runs every contestant on the same held-out questions and writes one JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="scenes")
    parser.add_argument("--predictor", default="scenes-0.5")
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--first", type=int, default=2000, help="number of the first test scene")
    parser.add_argument("--save", type=Path, required=True)
    options = parser.parse_args()
    loaded = load(options.model)
    shape, asked = shapes(loaded.model), list(evaluate.questions("test", options.pictures, options.first))
    _, card = from_pretrained(options.predictor)
    body = adapter_for(loaded.model).body(loaded.model)
    visual = adapter_for(loaded.model).per_image(body.config) or 0
    long = [q for q in asked if q.kind == "description"]
    sizes = {"text": 24, "visual": visual, "new_tokens": int(np.mean([len(q.references[0].split()) for q in long])) + 4}
    rows, plain, base = {}, [], Cost()
    for name, methods in contestants(options.predictor, shape, card.budget, sizes).items():
        report, cost, answers = run(loaded, asked, methods, shape)
        if name == "unpruned":
            plain, base = answers, cost
        share = cost.ratio(base)
        work = (cost.prefill + cost.decode) / (base.prefill + base.decode)
        delta = difference(asked, answers, plain)
        rows[name] = {
            "figures": report.figures,
            "intervals": report.intervals,
            "flops": {"prefill": share["prefill"], "decode": share["decode"], "both": work, "kv": share["kv_bytes"]},
            "object recall minus unpruned": delta,
        }
        print(f"{name}: {work:.3f} of FLOPs, recall {report.figures['object recall']:.3f}", file=sys.stderr)
    done = {
        "model": options.model,
        "predictor": options.predictor,
        "pictures": options.pictures,
        "first": options.first,
    }
    options.save.write_text(json.dumps({**done, "methods": rows}, indent=1))


if __name__ == "__main__":
    main()
