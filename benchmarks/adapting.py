"""What adapting is worth: predictors beside one rate for all, one for each kind of prompt, and each prompt's best.

Answers of validation scenes that no training and no choice has seen, at every rate of the predictors' grid
(`foveate.tune.train.dyrate.table`), so every line is of the same answers. Cross-entropy, not what is generated: that is
what the predictors learn, and it tells apart what sixty generated captions cannot.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.artefacts.predictors import Card, from_pretrained
from foveate.eval.intervals import difference
from foveate.models.load import load
from foveate.models.loaded import Loaded
from foveate.tune.examples import Example, scene_examples
from foveate.tune.train.dyrate.adapting import hindsight, of_choice, one_rate
from foveate.tune.train.dyrate.plan import Plan
from foveate.tune.train.dyrate.table import Table, tabulate
from foveate.tune.train.dyrate.train import source_of
from foveate.world.language import CAPTION_PROMPTS, DESCRIPTION_PROMPTS, KINDS

GROUPS = ("descriptions", "captions", "questions")
ASKED = tuple(kind for asked in KINDS for kind in ("description", "caption", asked))
FIRST = 500  # the trainers' reports use validation scenes below


def group_of(example: Example) -> int:
    """Which of `GROUPS`."""
    return (DESCRIPTION_PROMPTS[0], CAPTION_PROMPTS[0], example.prompt).index(example.prompt)


def lines(table: Table, group: Tensor, choice: Tensor, rates: Tensor) -> dict[str, Any]:
    """A predictor's choices beside the controls at its FLOPs: loss, FLOPs, and what every kind of prompt gets."""
    ratio = of_choice(table, choice).ratio
    chances = {
        "one rate for all": one_rate(table, ratio).expand(len(group), -1),
        "predictor": F.one_hot(choice, len(rates)).double(),
        "best rate of each kind": F.one_hot(hindsight(table, ratio, group), len(rates)).double(),
        "best rate of each prompt": F.one_hot(hindsight(table, ratio), len(rates)).double(),
    }
    loss = {name: (table.loss * chance).sum(1) for name, chance in chances.items()}
    found = {
        name: {
            "loss": float(loss[name].mean()),
            "flops": float((table.flops * chance).sum() / table.full.double().sum()),
            "keep": by_group(chance @ (1 - rates.double()), group),
            "losses": by_group(loss[name], group),
        }
        for name, chance in chances.items()
    }
    gap = difference(
        *(loss[name].numpy()[:, None] for name in ("predictor", "one rate for all")),
        groups=[str(i) for i in range(len(group))],
        value=lambda sums: sums[:, 0] / len(group),
    )
    return {"lines": found, "predictor less one rate": asdict(gap)}


def by_group(values: Tensor, group: Tensor) -> dict[str, float]:
    """The mean of each kind of prompt."""
    return {label: float(values[group == g].mean()) for g, label in enumerate(GROUPS)}


def measured(
    loaded: Loaded, examples: list[Example], names: list[str], card: Card, folder: Path
) -> dict[str, Any]:
    """What predictors of one layer, ranking and grid are worth."""
    group = torch.tensor([group_of(example) for example in examples])
    rates = len(card.rates)
    plan = Plan(
        layer=card.layer, num_rates=rates, ranking=card.ranking, decode=False, exact=True, batch=6
    )
    path = folder / f"{card.ranking}-{card.layer}-{rates}.safetensors"
    table = tabulate(loaded, examples, plan, path, source_of(loaded.model, examples), _show)
    spent = table.flops.double().sum(0) / table.full.double().sum()
    found: dict[str, Any] = {"ranking": card.ranking, "layer": card.layer}
    found["unpruned"] = float(table.loss[:, 0].mean())
    found["sweep"] = [
        {"keep": 1 - rate, "flops": float(spent[k]), "losses": by_group(table.loss[:, k], group)}
        for k, rate in enumerate(plan.rates)
    ]
    with torch.no_grad():
        choices = {name: from_pretrained(name)[0](table.shares).argmax(1) for name in names}
    found["predictors"] = {
        name: lines(table, group, choice, torch.tensor(plan.rates))
        for name, choice in choices.items()
    }
    return found


def _show(seen: dict[str, float]) -> None:
    print(f"\r{seen['step']}/{seen['steps']} batches", end="", file=sys.stderr)


def main() -> int:
    """Measures, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="scenes")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--predictors", nargs="+", required=True)
    parser.add_argument(
        "--answers", type=Path, required=True, help="folder to keep answers in, and to go on from"
    )
    parser.add_argument("--save", type=Path, required=True)
    given = parser.parse_args()
    loaded, examples = load(given.model), scene_examples("val", given.count, FIRST, ASKED).rows
    grids: dict[tuple[Any, ...], list[str]] = {}
    cards = {name: from_pretrained(name)[1] for name in given.predictors}
    for name, card in cards.items():
        grids.setdefault((card.ranking, card.layer, len(card.rates)), []).append(name)
    tables = [
        measured(loaded, examples, names, cards[names[0]], given.answers)
        for names in grids.values()
    ]
    body = {"model": given.model, "answers": len(examples), "tables": tables}
    given.save.write_text(json.dumps(body, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
