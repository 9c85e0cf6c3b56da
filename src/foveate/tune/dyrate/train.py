"""The training of a predictor: cross-entropy under Gumbel-sampled rates, and a budget of FLOPs."""

from __future__ import annotations

import importlib
import importlib.util
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.predictor import RatePredictor
from ...engine.adapters import adapter_for, decoder_of
from ...measure.cost import Shapes, shapes
from ...measure.evaluate import fingerprint
from ..examples import Example, encode
from .flops import flops_ratio, least_ratio
from .plan import Plan, resume, save
from .rollout import Batch, Choose, Rollout, batch_of, cross_entropy, roll_out, sizes, unpruned_logits

Report = Callable[[dict[str, float]], None]


def train(
    model: Any,
    processor: Any,
    examples: Sequence[Example],
    plan: Plan,
    folder: Path,
    report: Report | None = None,
    save_every: int = 20,
) -> RatePredictor:
    """Trains a predictor, or what is left of it in `folder`; the model stays frozen.

    Args:
        model, processor: of a supported family.
        examples: prompts with answers; step number s takes those from s x batch on, round and round.
        plan: the numbers; a folder belongs to one plan.
        folder: for the checkpoint.
        report: called after each step.
        save_every: steps between checkpoints.

    Raises:
        ValueError: a budget that no rate of the grid reaches, a layer outside the decoder, a folder of another plan,
            model or data, or fewer examples in a batch than processes.
    """
    state, shape = _processes(), shapes(model)
    _check_sizes(plan, len(shape.layers), state.num_processes)
    heads = decoder_of(adapter_for(model).body(model)).config.num_attention_heads
    predictor = RatePredictor(heads, plan.rates, plan.response).to(model.device)
    _check_budget(model, processor, examples, plan, shape)
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=plan.lr, betas=(0.9, 0.95), weight_decay=0.0)
    source = f"{fingerprint(model)} {_mark(examples)}"
    first = resume(folder, plan, source, predictor, optimizer)
    with _frozen(model):
        for step in range(first, plan.steps):
            _set_rate(optimizer, plan, step)
            seen = _step(model, processor, predictor, optimizer, examples, plan, step, shape, state)
            if report is not None:
                report({"step": step + 1, **seen})
            if state.is_main_process and ((step + 1) % save_every == 0 or step + 1 == plan.steps):
                save(folder, plan, source, predictor, optimizer, step + 1)
    return predictor


def _set_rate(optimizer: torch.optim.Optimizer, plan: Plan, step: int) -> None:
    """A cosine from the plan's rate to a tenth of it."""
    for group in optimizer.param_groups:
        group["lr"] = plan.lr * (0.55 + 0.45 * math.cos(math.pi * step / plan.steps))


def _mark(examples: Sequence[Example]) -> int:
    """Tells data apart by their words."""
    return zlib.crc32("\n".join(f"{example.prompt}\t{example.answer}" for example in examples).encode())


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


def _processes() -> Any:
    """accelerate's state of the processes that train together, one where there is no launcher."""
    if importlib.util.find_spec("accelerate") is None:
        raise ValueError("training needs accelerate; pip install 'foveate[train]'")
    return importlib.import_module("accelerate").PartialState()


def _check_sizes(plan: Plan, depth: int, processes: int) -> None:
    if not 0 <= plan.layer < depth:
        raise ValueError(f"layer={plan.layer}; expected 0 to {depth - 1}, the layers of this decoder")
    if plan.batch < processes:
        raise ValueError(f"batch={plan.batch}; expected {processes} or more, one for every process")


def _check_budget(model: Any, processor: Any, examples: Sequence[Example], plan: Plan, shape: Shapes) -> None:
    inputs, prompt = encode(processor, [examples[i % len(examples)] for i in range(plan.batch)])
    text, total = sizes(model, inputs, prompt)
    answered = inputs["attention_mask"][:, prompt:].bool()
    floors = [least_ratio(shape, layer, text, total, answered, plan.rates[-1]) for layer in range(plan.layer + 1)]
    if not floors[-1] <= plan.budget <= 1:
        lower = ", ".join(f"{floor:.3f} before layer {layer}" for layer, floor in enumerate(floors[:-1]))
        raise ValueError(
            f"budget={plan.budget:g} is out of reach: dropping as much as the rates allow before layer {plan.layer} "
            f"still costs {floors[-1]:.3f} of the unpruned FLOPs on this data ({lower or 'there is no lower layer'}); "
            "give a budget from there to 1, a lower layer, or more rates"
        )


def _step(
    model: Any,
    processor: Any,
    predictor: RatePredictor,
    optimizer: torch.optim.Optimizer,
    examples: Sequence[Example],
    plan: Plan,
    step: int,
    shape: Shapes,
    state: Any,
) -> dict[str, float]:
    share = range(plan.batch)[state.process_index :: state.num_processes]
    tau = plan.hot + (plan.cold - plan.hot) * step / max(1, plan.steps - 1)
    noise = torch.Generator().manual_seed((plan.seed * 1_000_003 + step) * 4096 + state.process_index)
    optimizer.zero_grad(set_to_none=True)
    seen: dict[str, float] = {}
    parts = [share[start :: plan.parts] for start in range(min(plan.parts, len(share)))]
    for part in parts:
        chosen = [examples[(step * plan.batch + i) % len(examples)] for i in part]
        choose = partial(_gumbel, uniform=torch.rand(len(part), len(plan.rates), generator=noise), tau=tau)
        found = _add_gradients(model, processor, predictor, chosen, plan, shape, choose, len(part) / len(share))
        for key, value in found.items():
            seen[key] = seen.get(key, 0.0) + value * len(part) / len(share)
    for p in predictor.parameters():
        p.grad = importlib.import_module("accelerate.utils").reduce(p.grad, "mean")
    optimizer.step()
    if not math.isfinite(seen["loss"]):
        raise FloatingPointError(f"the loss of step {step + 1} is {seen['loss']}; try a lower learning rate")
    return seen


def _gumbel(logits: Tensor, uniform: Tensor, tau: float) -> Tensor:
    """A one-hot sample with the gradient of its softmax (Gumbel-Softmax, straight-through).

    An answer's steps share their noise. Each step's sample is as Gumbel-Softmax has it, and steps with like logits take
    like rates; with noise of its own at every step, sets that only shrink would end with the highest of many rates.
    """
    clamped = uniform.clamp(1e-9, 1 - 1e-9).to(logits)
    soft = ((logits - (-clamped.log()).log()) / tau).softmax(-1)
    hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft)
    return hard + soft - soft.detach()


def _add_gradients(
    model: Any,
    processor: Any,
    predictor: RatePredictor,
    chosen: Sequence[Example],
    plan: Plan,
    shape: Shapes,
    choose: Choose,
    share: float,
) -> dict[str, float]:
    """Adds `share` of the examples' gradients to the predictor's; returns the figures of the progress line.

    Where the most attended key is a dropped one, the answer's loss is almost vertical in that key's weight, although
    a rate moves in steps: gradients a thousand times the others', which would drown the budget's. So the answer's are
    clipped by themselves.
    """
    batch, text, total = batch_of(model, processor, chosen)
    found = roll_out(model, predictor, plan.score, plan.layer, batch, choose, plan.decode)
    ratio = flops_ratio(shape, plan.layer, text, total, found.kept, batch.answered)
    answer = cross_entropy(found.logits, batch)
    quality = answer + plan.kl * _divergence(model, found, batch) if plan.kl else answer
    price = plan.weight * (ratio - plan.budget) ** 2
    parameters = list(predictor.parameters())
    of_quality = torch.autograd.grad(quality, parameters, retain_graph=True)
    of_price = torch.autograd.grad(price, parameters)
    norm = math.sqrt(sum(float(g.square().sum()) for g in of_quality))
    for p, g, h in zip(parameters, of_quality, of_price, strict=True):
        more = share * (g * min(1.0, plan.clip / max(norm, 1e-12)) + h)
        p.grad = more if p.grad is None else p.grad + more
    kept = (found.kept / total[:, None].clamp(min=1))[batch.answered].mean()
    loss = (quality + price).item()
    return {"loss": loss, "answer": answer.item(), "flops": ratio.item(), "kept": kept.item()}


def _divergence(model: Any, found: Rollout, batch: Batch) -> Tensor:
    plain = unpruned_logits(model, batch)[batch.answered].float().log_softmax(-1)
    pruned = found.logits[batch.answered].float().log_softmax(-1)
    return F.kl_div(pruned, plain, log_target=True, reduction="batchmean")
