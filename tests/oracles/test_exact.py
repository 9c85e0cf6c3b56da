"""Learning from every answer at every rate, and what it is compared with."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.artefacts.weighting import UNWEIGHED, Weighting
from foveate.core.predictor import RatePredictor
from foveate.processes import Processes
from foveate.tune.train.dyrate import table as tables
from foveate.tune.train.dyrate.adapting import compare, fixed, hindsight, of_choice
from foveate.tune.train.dyrate.exact import fit
from foveate.tune.train.dyrate.judge import judge, ratio_of
from foveate.tune.train.dyrate.plan import Plan
from foveate.tune.train.dyrate.rollout import at_every_rate, batch_of, roll_out
from foveate.tune.train.dyrate.table import Table, tabulate

PLAN = Plan(budget=0.5, layer=1, num_rates=4, ranking="diverse", decode=False, exact=True, batch=2)


@pytest.fixture(scope="module")
def table(scenes: Any, examples: Any) -> Table:
    return tabulate(scenes, examples, PLAN)


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("ranking", ["diverse", "last"])
def test_every_rate_at_once_is_each_rate_by_itself(
    layer: int, ranking: str, scenes: Any, examples: Any
) -> None:
    if layer == 0 and ranking == "last":
        pytest.skip("attention is judged from the layer before")
    plan = replace(PLAN, layer=layer, ranking=ranking)
    batch = batch_of(scenes, examples[:3])[0]
    predictor = RatePredictor(6, plan.rates)
    shares, found = at_every_rate(scenes.model, predictor, plan.score, layer, batch)
    assert shares.shape == (3, 6, 4)
    kepts = []
    for rate, (logits, kept) in enumerate(found):
        with torch.no_grad():
            alone = roll_out(
                scenes.model, predictor, plan.score, layer, batch, _always(rate), decode=False
            )
        torch.testing.assert_close(
            logits[batch.answered], alone.logits[batch.answered], atol=2e-4, rtol=1e-3
        )
        assert torch.equal(kept, alone.kept)
        kepts.append(float(kept[0, 0]))
    assert kepts == [196, 147, 98, 49]


@pytest.mark.parametrize("layer", [0, 2])
def test_every_rate_weighs_and_averages_as_it_does_by_itself(
    layer: int, scenes: Any, examples: Any
) -> None:
    weighting = Weighting("nearest", "mean")
    plan = replace(PLAN, layer=layer, weighting=weighting)
    batch = batch_of(scenes, examples[:2])[0]
    predictor = RatePredictor(6, plan.rates)
    _, found = at_every_rate(scenes.model, predictor, plan.score, layer, batch, weighting)
    for rate, (logits, _) in enumerate(found):
        with torch.no_grad():
            alone, plain = (
                roll_out(
                    scenes.model, predictor, plan.score, layer, batch, _always(rate), False, kind
                ).logits[batch.answered]
                for kind in (weighting, UNWEIGHED)
            )
        torch.testing.assert_close(logits[batch.answered], alone, atol=2e-4, rtol=1e-3)
        assert ((plain - alone).abs().max() > 0.01) == (rate > 0)
    weighted, other = (
        tabulate(scenes, examples[:2], plan),
        tabulate(scenes, examples[:2], replace(plan, weighting=UNWEIGHED)),
    )
    assert torch.equal(weighted.loss[:, 0], other.loss[:, 0])
    assert not torch.equal(weighted.loss, other.loss)


def test_a_table_is_of_the_examples_in_their_order_and_agrees_with_the_judge(
    table: Table, scenes: Any, examples: Any
) -> None:
    assert table.loss.shape == table.divergence.shape == table.flops.shape == (6, 4)
    assert bool((table.divergence[:, 0] == 0).all()) and bool((table.divergence[:, 1:] > 0).all())
    torch.testing.assert_close(table.flops[:, 0], table.full)
    for at in (0, 5):
        alone = tabulate(scenes, [examples[at]], PLAN)
        torch.testing.assert_close(alone.loss[0], table.loss[at], atol=1e-4, rtol=1e-3)
    predictor = RatePredictor(6, PLAN.rates)
    torch.nn.init.normal_(
        predictor.linear.weight, std=8.0, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        predictor.linear.weight *= 20
        predictor.linear.bias.copy_(-predictor.linear.weight @ table.shares.mean(0).flatten())
        chosen = predictor(table.shares).argmax(1)
    assert len(chosen.unique()) > 1
    point, judged = of_choice(table, chosen), judge(scenes, predictor, examples, PLAN)
    assert point.loss == pytest.approx(judged.loss, abs=1e-4)
    assert point.ratio == pytest.approx(judged.ratio, rel=1e-5)
    assert ratio_of(scenes, predictor, examples, PLAN) == pytest.approx(judged.ratio, rel=1e-6)


def test_a_table_that_was_stopped_goes_on_and_is_refused_to_others(
    table: Table, scenes: Any, examples: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "answers.safetensors"

    def stop(seen: dict[str, float]) -> None:
        if seen["step"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(tables, "_SAVE_EVERY", 1)
    with pytest.raises(KeyboardInterrupt):
        tabulate(scenes, examples, PLAN, path, "these", stop)
    runs: list[int] = []
    run = tables._run
    monkeypatch.setattr(tables, "_run", lambda *given: runs.append(1) or run(*given))
    whole = tabulate(scenes, examples, PLAN, path, "these")
    assert len(runs) == 1, "two of three batches were done"
    assert torch.equal(whole.loss, table.loss) and torch.equal(whole.shares, table.shares)
    tabulate(scenes, examples, replace(PLAN, budget=0.7, kl=1.0), path, "these")
    assert len(runs) == 1, "one table serves every budget"
    with pytest.raises(ValueError, match="another layer"):
        tabulate(scenes, examples, replace(PLAN, layer=2), path, "these")
    with pytest.raises(ValueError, match="other data"):
        tabulate(scenes, examples, PLAN, path, "those")


def test_processes_share_the_batches(
    table: Table, scenes: Any, examples: Any, tmp_path: Path
) -> None:
    """The first runs its share and takes the other's; files do not meet."""
    parts: list[Any] = []

    class Two(Processes):
        def gather(self, mine: Any) -> list[Any]:
            parts.append(mine)
            return parts

    for rank in (1, 0):
        whole = tabulate(
            scenes, examples, PLAN, tmp_path / "a.safetensors", "x", processes=Two(rank, 2)
        )
    assert torch.equal(whole.loss, table.loss)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "a-0-of-2.safetensors",
        "a-1-of-2.safetensors",
    ]


def _kinds(noise: float = 0.0) -> Table:
    """Half of 200 prompts lose by dropping, half do not; a head's attention tells which, by two hundredths."""
    generator = torch.Generator().manual_seed(0)
    frail = (torch.arange(200) % 2).float()
    loss = (
        0.1
        + frail[:, None] * torch.tensor([0.0, 0.3, 0.9, 3.0])
        + noise * torch.rand(200, 4, generator=generator)
    )
    shares = 0.5 + 0.002 * torch.randn(200, 2, 4, generator=generator)
    shares[:, 1, 2] += 0.02 * frail
    spent = torch.tensor([1.0, 0.75, 0.5, 0.25]).expand(200, 4)
    return Table(loss, 2 * (loss - loss[:, :1]), spent, spent[:, 0], shares)


@pytest.mark.parametrize("response", [True, False])
def test_the_fit_gives_to_each_kind_what_it_needs_at_the_budget(response: bool) -> None:
    found, plan = _kinds(0.05), replace(PLAN, budget=0.6, response=response)
    chosen = _chosen(found, plan)
    point = of_choice(found, chosen)
    assert 0.5 < point.ratio < 0.61
    assert float(chosen[1::2].float().mean()) < 0.6 and float(chosen[::2].float().mean()) > 2.4
    assert point.loss < fixed(found, point.ratio).loss - 0.2
    torch.manual_seed(1)
    assert torch.equal(_chosen(found, plan), chosen), "nothing is drawn"


def test_the_fit_of_prompts_that_look_alike_is_one_rate() -> None:
    kinds = _kinds()
    alike = replace_shares(kinds, torch.full_like(kinds.shares, 0.5))
    assert _chosen(alike, replace(PLAN, budget=0.5)).unique().tolist() == [2]


def test_the_divergence_counts_with_kl() -> None:
    """Where losses are alike, and only the divergence tells kinds apart."""
    kinds = _kinds()
    same = Table(
        torch.full_like(kinds.loss, 0.1), kinds.divergence, kinds.flops, kinds.full, kinds.shares
    )
    apart = {}
    for kl in (0.0, 2.0):
        chosen = _chosen(same, replace(PLAN, budget=0.6, kl=kl)).float()
        apart[kl] = float(chosen[::2].mean() - chosen[1::2].mean())
    assert apart[2.0] > 1.5 and abs(apart[0.0]) < 0.5


def _chosen(found: Table, plan: Plan) -> torch.Tensor:
    """The rates that a fit chooses."""
    with torch.no_grad():
        return fit(found, plan)(found.shares).argmax(1)


def replace_shares(kinds: Table, shares: torch.Tensor) -> Table:
    return Table(kinds.loss, kinds.divergence, kinds.flops, kinds.full, shares)


@given(
    losses=st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=3, max_size=3),
    ratio=st.floats(0.2, 1.0),
)
def test_hindsight_is_the_best_of_all_choices_at_its_flops(
    losses: list[list[int]], ratio: float
) -> None:
    small = _small(losses)
    chosen = hindsight(small, ratio)
    ours = of_choice(small, chosen)
    assert ours.ratio <= ratio + 1e-6
    every = [of_choice(small, torch.tensor(c)) for c in product(range(3), repeat=3)]
    assert ours.loss <= min(p.loss for p in every if p.ratio <= ours.ratio + 1e-9) + 1e-6
    assert (
        ours.loss
        <= of_choice(small, hindsight(small, ratio, torch.zeros(3, dtype=torch.long))).loss + 1e-9
    )


@given(losses=st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=3, max_size=3))
def test_a_fixed_rate_lies_between_its_neighbours(losses: list[list[int]]) -> None:
    small = _small(losses)
    means = small.loss.mean(0).tolist()
    assert fixed(small, 1.0).loss == pytest.approx(means[0])
    assert fixed(small, 0.6).loss == pytest.approx(means[1])
    assert fixed(small, 0.2).loss == pytest.approx(means[2])
    between = fixed(small, 0.7)
    assert between.ratio == pytest.approx(0.7)
    assert between.loss == pytest.approx(0.25 * means[0] + 0.75 * means[1], abs=1e-5)
    with pytest.raises(ValueError, match="no rate costs"):
        fixed(small, 0.1)


def test_the_controls_of_a_report_bound_each_other(
    table: Table, scenes: Any, examples: Any
) -> None:
    beside = compare(scenes, examples, PLAN, 0.6)
    assert beside.hindsight_loss < beside.fixed_loss
    assert beside.fixed_loss == pytest.approx(fixed(table, 0.6).loss, abs=1e-5)


def test_a_decision_at_every_step_is_not_learned_from_a_table() -> None:
    with pytest.raises(ValueError, match="add --no-decode"):
        Plan(exact=True)


def _small(losses: list[list[int]]) -> Table:
    spent = torch.tensor([1.0, 0.6, 0.2]).expand(3, 3)
    return Table(
        torch.tensor(losses).float(), torch.zeros(3, 3), spent, spent[:, 0], torch.zeros(3, 1, 4)
    )


def _always(rate: int) -> Any:
    def choose(logits: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.full((len(logits),), rate), logits.shape[-1]).to(
            logits
        )

    return choose
