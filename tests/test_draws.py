"""Learning from drawn rates, and a learner in other coordinates."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from foveate.core.predictor import RatePredictor
from foveate.measure.cost import shapes
from foveate.tune.dyrate import gradients
from foveate.tune.dyrate.gradients import by_draws
from foveate.tune.dyrate.learner import Learner
from foveate.tune.dyrate.plan import Plan
from foveate.tune.dyrate.rollout import answer_losses, batch_of, roll_out


def test_learning_from_draws_is_right_on_average(scenes: Any, examples: Any) -> None:
    """Over all pairs of draws, weighed by their chances, the estimate is the gradient of the expected loss."""
    plan = Plan(budget=0.5, layer=1, num_rates=2, drop_all=True, draws=2, decode=False, weight=0.0, clip=1e9, kl=0.5)
    made = batch_of(*scenes, examples[:1])
    predictor = RatePredictor(6, plan.rates)
    torch.nn.init.normal_(predictor.linear.weight, generator=torch.Generator().manual_seed(3))
    count, tau, shape = len(plan.rates), 1.5, shapes(scenes.model)
    losses = torch.zeros(count)
    for rate in range(count):
        found = roll_out(scenes.model, predictor, plan.score, 1, made[0], _Always(rate), decode=False)
        away = gradients._divergences(gradients._plain(scenes.model, made[0]), found, made[0])
        losses[rate] = answer_losses(found.logits, made[0]) + 0.5 * away
        logits = _Always.seen
    chances = (logits[0] / tau).softmax(-1)
    expected = torch.autograd.grad((chances * losses).sum(), list(predictor.parameters()))
    average = [torch.zeros_like(g) for g in expected]
    for first, second in product(range(count), repeat=2):
        uniform = torch.full((2, 1, count), 1e-9)  # the one drawn has all the luck
        uniform[0, 0, first] = uniform[1, 0, second] = 1 - 1e-7
        got = by_draws(scenes.model, predictor, made, plan, shape, uniform, tau).gradients
        weight = (chances[first] * chances[second]).item()
        average = [a + weight * g for a, g in zip(average, got, strict=True)]
    assert losses.max() - losses.min() > 0.5 and max(float(g.abs().max()) for g in expected) > 0.01
    for ours, theirs in zip(average, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


def test_the_budget_of_draws_is_that_of_the_expected_count(scenes: Any, examples: Any) -> None:
    """It has no noise of sampling, and its gradient lowers the FLOPs."""
    plan = Plan(budget=0.3, layer=1, num_rates=4, draws=3, decode=False)
    made = batch_of(*scenes, examples[:2])
    predictor, shape = RatePredictor(6, plan.rates), shapes(scenes.model)
    estimates = [
        by_draws(scenes.model, predictor, made, plan, shape, torch.rand(3, 2, 4, generator=generator), 1.0)
        for generator in (torch.Generator().manual_seed(seed) for seed in (0, 1))
    ]
    assert estimates[0].figures["flops"] == estimates[1].figures["flops"]
    assert estimates[0].figures["answer"] != estimates[1].figures["answer"], "draws differ"
    with torch.no_grad():
        for p, g in zip(predictor.parameters(), estimates[0].gradients, strict=True):
            p.sub_(0.01 * g)
    after = by_draws(scenes.model, predictor, made, plan, shape, torch.rand(3, 2, 4), 1.0)
    assert after.figures["flops"] < estimates[0].figures["flops"]
    with pytest.raises(ValueError, match="add --no-decode"):
        Plan(draws=2)


def test_a_learner_is_the_linear_classifier_in_other_coordinates() -> None:
    rates, generator = (0.0, 0.2, 0.5, 0.9), torch.Generator().manual_seed(0)
    seen = torch.rand(9, 2, 4, generator=generator) * torch.tensor([1.0, 0.3, 0.01, 0.5])
    for response in (True, False):
        learner = Learner(2, rates, response, seen)
        assert learner(seen).std(0).max() == 0, "at first all prompts are alike"
        torch.nn.init.normal_(learner.linear.weight, generator=generator)
        torch.nn.init.normal_(learner.linear.bias, generator=generator)
        learner.sharpness.data.fill_(0.7)
        assert learner.linear.weight.shape == (1, 8 if response else 6)
        found = learner(seen)
        torch.testing.assert_close(learner.plain()(seen), found, atol=1e-4, rtol=1e-4)
        assert len(found.argmax(-1).unique()) > 1, "prompts differ"
        bends = (found.diff(dim=-1) / torch.tensor(rates).diff()).diff(dim=-1)
        assert bool((bends < 0).all()), "a bell: away from its top it only falls"


class _Always:
    """Chooses one rate, and shows the logits."""

    seen: torch.Tensor

    def __init__(self, rate: int) -> None:
        self.rate = rate

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        _Always.seen = logits
        return torch.nn.functional.one_hot(torch.full((len(logits),), self.rate), logits.shape[-1]).to(logits)
