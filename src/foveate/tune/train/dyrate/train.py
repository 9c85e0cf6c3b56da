"""The training of a predictor to a budget.

It learns from all rates at once where it can, else under Gumbel-sampled ones.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....core.predictor import RatePredictor
from ....cost.flops import Shapes, shapes
from ....eval.answers import fingerprint
from ....models.loaded import Loaded
from ....processes import Processes, launched
from ...examples import Example, encode
from .exact import fit
from .flops import least_ratio
from .gradients import through_masks
from .plan import Plan, resume, save
from .rollout import batch_of, sizes
from .table import Report, tabulate

ANSWERS = "answers.safetensors"


def train(
    loaded: Loaded,
    examples: Sequence[Example],
    plan: Plan,
    folder: Path,
    report: Report | None = None,
    save_every: int = 20,
    answers: Path | None = None,
) -> RatePredictor:
    """Trains a predictor, or what is left of it in `folder`; the model stays frozen.

    Args:
        loaded: of a supported family.
        examples: prompts with answers; step number s takes those from s x batch on, round and
            round. What is `exact` takes each once.
        plan: the numbers; a folder belongs to one plan.
        folder: for the checkpoint.
        report: called after each step.
        save_every: steps between checkpoints.
        answers: where `exact` keeps its answers at every rate, which serve all budgets; else in
            `folder`.

    Raises:
        ValueError: a budget that no rate of the grid reaches, a layer outside the decoder, a folder
            of another plan, model or data, or fewer examples in a batch than processes.
    """
    together = launched()
    shape = shapes(loaded.model)
    _check_sizes(plan, len(shape.layers), together.count)
    _check_budget(loaded, examples, plan, shape)
    source = source_of(loaded.model, examples)
    with _frozen(loaded.model):
        if plan.exact:
            path = answers or folder / ANSWERS
            chosen = examples[: plan.steps * plan.batch]
            table = tabulate(loaded, chosen, plan, path, source, report, together)
            return fit(table, plan).to(loaded.model.device)
        return _descend(loaded, examples, plan, folder, source, report, save_every, together)


def _descend(
    loaded: Loaded,
    examples: Sequence[Example],
    plan: Plan,
    folder: Path,
    source: str,
    report: Report | None,
    save_every: int,
    together: Processes,
) -> RatePredictor:
    """Trains by stochastic gradients through soft masks, from where the folder's checkpoint is."""
    shape = shapes(loaded.model)
    predictor = RatePredictor(loaded.anatomy.heads, plan.rates, plan.response)
    predictor = predictor.to(loaded.model.device)
    optimizer = torch.optim.AdamW(
        predictor.parameters(), lr=plan.lr, betas=(0.9, 0.95), weight_decay=0.0
    )
    done = resume(folder, plan, source, predictor, optimizer)
    for step in range(done, plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.lr_at(step / plan.steps)
        seen = _step(loaded, predictor, optimizer, examples, plan, step, shape, together)
        if report is not None:
            report({"step": step + 1, **seen})
        if together.index == 0 and ((step + 1) % save_every == 0 or step + 1 == plan.steps):
            save(folder, plan, source, predictor, optimizer, step + 1)
    return predictor


def source_of(model: Any, examples: Sequence[Example]) -> str:
    """A mark that differs from model to model, and from data to data by their words."""
    words = "\n".join(f"{example.prompt}\t{example.answer}" for example in examples)
    return f"{fingerprint(model)} {zlib.crc32(words.encode())}"


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """Within it no weight of the model asks for a gradient."""
    asking = [p for p in model.parameters() if p.requires_grad]
    for p in asking:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in asking:
            p.requires_grad_(True)


def _check_sizes(plan: Plan, depth: int, processes: int) -> None:
    """Refuses a layer outside the decoder, and a batch of which some process would get nothing."""
    if not 0 <= plan.layer < depth:
        raise ValueError(
            f"layer={plan.layer}; expected 0 to {depth - 1}, the layers of this decoder"
        )
    if plan.batch < processes:
        raise ValueError(f"batch={plan.batch}; expected {processes} or more, one for every process")


def _check_budget(loaded: Loaded, examples: Sequence[Example], plan: Plan, shape: Shapes) -> None:
    """Refuses a budget that the highest rate does not reach on the first batch."""
    inputs, prompt = encode(loaded, [examples[i % len(examples)] for i in range(plan.batch)])
    text, total = sizes(loaded.model, inputs, prompt)
    answered = inputs["attention_mask"][:, prompt:].bool()  # (B S)
    floors = [
        least_ratio(shape, layer, text, total, answered, plan.rates[-1])
        for layer in range(plan.layer + 1)
    ]
    floor = floors.pop()  # at the plan's layer; those left are of lower ones
    if not floor <= plan.budget <= 1:
        lower = [f"{other:.3f} before layer {layer}" for layer, other in enumerate(floors)]
        raise ValueError(
            f"budget={plan.budget:g} is out of reach: dropping as much as the rates allow before "
            f"layer {plan.layer} still costs {floor:.3f} of the unpruned FLOPs on this data "
            f"({', '.join(lower) or 'there is no lower layer'}); "
            "give a budget from there to 1, a lower layer, or more rates"
        )


def _step(
    loaded: Loaded,
    predictor: RatePredictor,
    optimizer: torch.optim.Optimizer,
    examples: Sequence[Example],
    plan: Plan,
    step: int,
    shape: Shapes,
    together: Processes,
) -> dict[str, float]:
    """One step of the optimiser; its figures, means over this process's share of the batch."""
    share = range(plan.batch)[together.index :: together.count]
    tau = plan.hot + (plan.cold - plan.hot) * step / max(1, plan.steps - 1)
    # A seed of its own for every step and process: a run that is resumed draws what it would have.
    noise = torch.Generator(device="cpu").manual_seed(
        (plan.seed * 1_000_003 + step) * 4096 + together.index
    )
    optimizer.zero_grad(set_to_none=True)
    seen: dict[str, float] = {}
    parts = [share[start :: plan.parts] for start in range(min(plan.parts, len(share)))]
    for part in parts:
        chosen = [examples[(step * plan.batch + i) % len(examples)] for i in part]
        made = batch_of(loaded, chosen)
        uniform = torch.rand(
            len(part), len(plan.rates), generator=noise, dtype=torch.float32, device="cpu"
        )
        found = through_masks(loaded.model, predictor, made, plan, shape, uniform, tau)
        _add(found.gradients, predictor, len(part) / len(share))
        for key, value in found.figures.items():
            seen[key] = seen.get(key, 0.0) + value * len(part) / len(share)
    for p in predictor.parameters():
        if p.grad is not None:
            p.grad = together.mean(p.grad)
    optimizer.step()
    if not math.isfinite(seen["loss"]):
        raise FloatingPointError(
            f"the loss of step {step + 1} is {seen['loss']}; try a lower learning rate"
        )
    return seen


def _add(gradients: Sequence[Tensor], predictor: RatePredictor, share: float) -> None:
    """Adds gradients, weighted by `share`, to those that the predictor has."""
    for p, g in zip(predictor.parameters(), gradients, strict=True):
        p.grad = share * g if p.grad is None else p.grad + share * g
