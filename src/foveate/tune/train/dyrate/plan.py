"""The numbers of a training, and its checkpoint."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ....artefacts.weighting import UNWEIGHED, Weighting
from ....core.contract import Score
from ....core.predictor import RatePredictor, rate_grid
from ....files import writing
from ....methods.dyrate import ranked


@dataclass(frozen=True)
class Plan:
    """All numbers of a training.

    The loss is ``CE + weight (F/F_full - budget)^2 + kl KL(unpruned || pruned)``, where CE is each
    answer's mean over its words, so that short answers count (the paper: over all words).

    The optimiser is DiffRate's (2305.17997): AdamW, learning rate `lr` to a tenth of it by a
    cosine, no weight decay. But the rate is higher than its 1e-2, and squared gradients are
    forgotten sooner (0.95): a linear layer must move its logits by several units, and the first
    gradients are a hundred times the later ones.

    Attributes:
        budget: FLOPs over the unpruned model's.
        layer: the prune layer.
        num_rates: how many rates there are to choose from.
        ranking: what ranks the tokens; by default what keeps most on held-out data. The paper's is
            "last".
        response: whether the predictor sees the response's share.
        steps: of the optimiser; with `exact`, batches of answers.
        batch: examples of a step, over all processes.
        lr: the learning rate at the beginning.
        weight: of the budget's term. `exact` has its own.
        clip: the largest norm that the gradient of CE and KL may have.
        kl: weight of the divergence.
        hot, cold: the temperature of Gumbel-Softmax falls linearly from `hot` to `cold`. `exact`
            has none.
        seed: of the noise.
        drop_all: whether there is a rate of 1, too.
        parts: into how many a process splits its share of a batch, so that less is in memory at
            once. The budget then holds for every part by itself, since its loss is a square.
        decode: whether the predictor decides before decode steps too; else it learns the choice of
            the prefill alone.
        protect: as of `methods.dyrate`.
        exact: True to run the answers at every rate and learn from that table (`exact.fit`). False
            to learn through soft masks, as the paper does.
        weighting: what kept tokens weigh, and whether they become means, in all of training.

    Raises:
        ValueError: no such ranking, or one that is not possible before the layer; `exact` while
            decoding; a temperature that is not above 0.
    """

    budget: float = 0.5
    layer: int = 2
    num_rates: int = 10
    ranking: str = "diverse"
    response: bool = True
    steps: int = 300
    batch: int = 8
    lr: float = 0.05
    weight: float = 100.0
    clip: float = 1.0
    kl: float = 0.0
    hot: float = 2.0
    cold: float = 0.5
    seed: int = 0
    drop_all: bool = False
    parts: int = 1
    decode: bool = True
    protect: str = "nothing"
    exact: bool = False
    weighting: Weighting = UNWEIGHED

    def __post_init__(self) -> None:
        if self.exact and self.decode:
            raise ValueError(
                "exact learning is of the one decision at the prefill, and decode=True decides at "
                "every step: add --no-decode, or give --masks"
            )
        if not (self.cold > 0 and self.hot > 0):
            raise ValueError(f"hot={self.hot}, cold={self.cold}; expected temperatures above 0")
        # Refuses now what it would refuse later.
        ranked(self.ranking, self.protect, self.layer)

    @property
    def score(self) -> Score:
        """What ranks."""
        return ranked(self.ranking, self.protect, self.layer)

    def lr_at(self, done: float) -> float:
        """The learning rate when a share `done` of the steps is done.

        It falls from `lr` to a tenth of it by a cosine.
        """
        return self.lr * (0.55 + 0.45 * math.cos(math.pi * done))

    @property
    def facts(self) -> dict[str, Any]:
        """The numbers as checkpoints have them. Those without weights and means are as ever."""
        found = asdict(self)
        if not self.weighting.facts:
            del found["weighting"]
        return found

    @property
    def rates(self) -> tuple[float, ...]:
        """Rates to choose from."""
        return rate_grid(self.num_rates, self.drop_all)


def save(
    folder: Path,
    plan: Plan,
    source: str,
    predictor: RatePredictor,
    optimizer: torch.optim.Optimizer,
    step: int,
) -> None:
    """Writes the checkpoint. `source` marks model and data."""
    tensors = {}
    for name, weight in predictor.state_dict().items():
        tensors[f"predictor/{name}"] = weight.detach().cpu().contiguous()
    for number, state in optimizer.state_dict()["state"].items():  # a state for each parameter
        for name, value in state.items():
            tensors[f"optimizer/{number}/{name}"] = torch.as_tensor(value).cpu().contiguous()
    facts = {"step": str(step), "plan": json.dumps(plan.facts), "source": source}
    write(folder / "state.safetensors", tensors, facts)


def write(path: Path, tensors: dict[str, Tensor], facts: dict[str, str]) -> None:
    """A safetensors file in place of the old one, which stays whole until the new one is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    with writing(path):
        save_file(tensors, new, facts)
        os.replace(new, path)


def resume(
    folder: Path,
    plan: Plan,
    source: str,
    predictor: RatePredictor,
    optimizer: torch.optim.Optimizer,
) -> int:
    """Takes up the checkpoint, if there is one; returns the steps done.

    Raises:
        ValueError: it belongs to another plan, model or data.
    """
    path = folder / "state.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    if json.loads(facts["plan"]) != plan.facts:
        raise ValueError(
            f"{path} belongs to another plan; give another folder, or the same numbers to resume"
        )
    if facts.get("source") != source:
        raise ValueError(
            f"{path} was trained on another model or other data; "
            "give another folder, or those to resume"
        )
    weights = {}
    whole = optimizer.state_dict()
    for key, value in load_file(path).items():
        owner, name = key.split("/", 1)
        if owner == "predictor":
            weights[name] = value
        else:
            number, name = name.split("/")
            whole["state"].setdefault(int(number), {})[name] = value
    predictor.load_state_dict(weights)
    optimizer.load_state_dict(whole)
    return int(facts["step"])
