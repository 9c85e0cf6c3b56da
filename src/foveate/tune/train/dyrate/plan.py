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
from ....methods.dyrate import ranked


@dataclass(frozen=True)
class Plan:
    """All numbers of a training.

    The loss is ``CE + weight (F/F_full - budget)^2 + kl KL(unpruned || pruned)``, where CE is each answer's mean over
    its words, so that short answers count (the paper: over all words). The optimiser is DiffRate's
    (2305.17997): AdamW, learning rate `lr` to a tenth of it by a cosine, no weight decay. But the rate is higher than
    its 1e-2, and squared gradients are forgotten sooner (0.95): a linear layer must move its logits by several units,
    and the first gradients are a hundred times the later ones. The temperature of
    Gumbel-Softmax falls from `hot` to `cold` linearly. `batch` is over all processes; each works its share off in
    `parts`, so that less is in memory at once. The budget then holds for every part by itself: its loss is a square.
    `ranking` is by default what keeps most on held-out data; the paper's is "last". `drop_all` adds the rate 1. Without
    `decode` the predictor learns the choice of the prefill alone; `protect` is of `methods.dyrate`. `exact` runs
    `steps` batches of answers at every rate, and learns from that table (`exact.fit`), which wants neither `weight` nor
    temperatures; otherwise through soft masks, as the paper does. `clip` is the most that the gradient of CE and KL may
    measure. `weighting` is what kept tokens weigh and whether they become means, in all of training.

    Raises:
        ValueError: no such ranking, or one that is not possible before the layer; `exact` while decoding; a
            temperature that is not above 0.
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
                "exact learning is of the one decision at the prefill, and decode=True decides at every step: "
                "add --no-decode, or give --masks"
            )
        if not (self.cold > 0 and self.hot > 0):
            raise ValueError(f"hot={self.hot}, cold={self.cold}; expected temperatures above 0")
        ranked(self.ranking, self.protect, self.layer)  # refuses now what it would refuse then

    @property
    def score(self) -> Score:
        """What ranks."""
        return ranked(self.ranking, self.protect, self.layer)

    def lr_at(self, done: float) -> float:
        """The learning rate when a share `done` of the steps is done: a cosine from `lr` to a tenth of it."""
        return self.lr * (0.55 + 0.45 * math.cos(math.pi * done))

    @property
    def facts(self) -> dict[str, Any]:
        """The numbers as checkpoints have them; those without weights and means say nothing of them, as ever."""
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
    tensors = {
        f"predictor/{k}": v.detach().cpu().contiguous() for k, v in predictor.state_dict().items()
    }
    for p, state in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer/{p}/{k}": torch.as_tensor(v).cpu().contiguous() for k, v in state.items()
        }
    facts = {"step": str(step), "plan": json.dumps(plan.facts), "source": source}
    write(folder / "state.safetensors", tensors, facts)


def write(path: Path, tensors: dict[str, Tensor], facts: dict[str, str]) -> None:
    """A safetensors file in place of the old one, which stays whole until the new one is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
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
            f"{path} was trained on another model or other data; give another folder, or those to resume"
        )
    tensors = load_file(path)
    predictor.load_state_dict(
        {k.split("/", 1)[1]: v for k, v in tensors.items() if k.startswith("predictor/")}
    )
    whole = optimizer.state_dict()
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, p, k = key.split("/")
            whole["state"].setdefault(int(p), {})[k] = value
    optimizer.load_state_dict(whole)
    return int(facts["step"])
