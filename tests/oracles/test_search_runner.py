"""The search's own runner equals `foveate.apply`, prefill and decoding step by step; a trial starts where it may."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from foveate.artefacts.weighting import UNWEIGHED, Weighting
from foveate.core.method import Method
from foveate.core.schedules import PerLayer
from foveate.core.scores import RANKINGS
from foveate.core.tokens import Kind
from foveate.methods import score_of
from foveate.tune.search.runner import Runner
from foveate.tune.train.dyrate.rollout import Batch
from models.tiny import FAMILIES, IMAGE, LAYERS, Layout, batch, model
from oracles.cached import decoded

NEW = 5
LAYOUTS = {
    "one": Layout(((3, 0, 5),)),
    "ragged": Layout(((3, 0, 5), (2, 0, 2), (6, 0, 1)), seed=1),
    "several": Layout(((3, 0, 2, 0, 4), (5,), (2, 0, 0, 3)), seed=3),
    "ends in an image": Layout(((3, 0), (2, 0, 2)), seed=4),
}
KEEP = (1.0, 0.7, 0.7, 0.2)


def taught(family: str, backend: str, layout: str) -> Batch:
    """Prompts with random answers of different lengths, padded on the right."""
    inputs = dict(batch(family, LAYOUTS[layout], backend).inputs)
    samples, prompt = inputs["input_ids"].shape
    words = torch.randint(3, IMAGE, (samples, NEW), generator=torch.Generator().manual_seed(7))
    there = torch.tensor([[1] * (NEW - i) + [0] * i for i in range(samples)])
    mask = torch.cat([inputs["attention_mask"], there], 1)
    inputs |= {"input_ids": torch.cat([inputs["input_ids"], words], 1), "attention_mask": mask}
    inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    return Batch(inputs, prompt)


METHODS = (
    "dart",
    "sparsevlm",
    "divprune",
    "visionzip",
    "cdpruner",
    "vispruner",
    "flowcut",
    "prumerge",
    "vscan2",
)
CROSSED = [  # every ranking, and methods' scores, on ragged batches; every family and backend on every layout
    *(
        (ranking, "llava", "sdpa", layout)
        for ranking in (*RANKINGS, *METHODS)
        for layout in ("ragged", "several")
    ),
    *(("mix", family, "sdpa", layout) for family in FAMILIES for layout in LAYOUTS),
    *(("layers", "llava_next", "eager", layout) for layout in LAYOUTS),
]


@pytest.mark.parametrize(("ranking", "family", "backend", "layout"), CROSSED)
def test_layer_by_layer_equals_apply(ranking: str, family: str, backend: str, layout: str) -> None:
    made, given = model(family, backend), taught(family, backend, layout)
    runner = Runner(made, score_of(ranking))
    head = made.get_output_embeddings()
    found = head(runner.to_end(runner.start(given), KEEP))
    wanted = decoded(made, given, Method(score_of(ranking), PerLayer(KEEP)))
    there = given.answered
    torch.testing.assert_close(found[there], wanted[there], atol=2e-4, rtol=1e-3)
    plain = decoded(made, given)
    has = (given.inputs["input_ids"] == IMAGE).any(1)[:, None] & there
    assert (plain - wanted)[has].abs().max() > 0.01, (
        "nothing was dropped, so this test could not fail"
    )


WEIGHTINGS = {
    "nearest": Weighting("nearest"),
    "nearest, mean": Weighting("nearest", "mean", cutoff=-1.0),
    "mean alone": Weighting("none", "mean", cutoff=0.0),
    "cell": Weighting("cell", strength=0.5),
    "mixed, mean": Weighting("mixed", "mean", place=2.0, cutoff=0.2),
    "uniform, mean": Weighting("uniform", "mean", cutoff=-1.0),
}
SPOKEN = [  # every kind on every layout; rankings that look at rows, keys or states of weighed layers; families
    *((kind, "last", "llava", "sdpa", layout) for kind in WEIGHTINGS for layout in LAYOUTS),
    *(
        ("nearest, mean", ranking, "llava", "sdpa", layout)
        for ranking in (*RANKINGS, "dart", "sparsevlm", "divprune", "vscan2")
        for layout in ("ragged", "several")
    ),
    *(("nearest, mean", "mix", family, "eager", "ragged") for family in FAMILIES),
    *(("mixed, mean", "layers", "llava_next", "eager", layout) for layout in LAYOUTS),
]


@pytest.mark.parametrize(("kind", "ranking", "family", "backend", "layout"), SPOKEN)
def test_weights_and_means_layer_by_layer_equal_apply(
    kind: str, ranking: str, family: str, backend: str, layout: str
) -> None:
    made, given = model(family, backend), taught(family, backend, layout)
    weighting = WEIGHTINGS[kind]
    runner = Runner(made, score_of(ranking), weighting=weighting)
    head = made.get_output_embeddings()
    found = head(runner.to_end(runner.start(given), KEEP))
    method = Method(score_of(ranking), PerLayer(KEEP)).weighted(**asdict(weighting))
    wanted = decoded(made, given, method)
    there = given.answered
    torch.testing.assert_close(found[there], wanted[there], atol=2e-4, rtol=1e-3)
    has = (given.inputs["input_ids"] == IMAGE).any(1)[:, None] & there
    lacking = [UNWEIGHED]
    if weighting.weigh != "none" and weighting.merge != "none":
        lacking += [
            replace(weighting, weigh="none", place=None),
            replace(weighting, merge="none", cutoff=None),
        ]
    for less in lacking:
        bare = Runner(made, score_of(ranking), weighting=less)
        other = head(bare.to_end(bare.start(given), KEEP))
        assert (other - wanted)[has].abs().max() > 0.005, f"{less} gives the same"


def test_trials_that_share_a_prefix_share_no_numbers() -> None:
    given = taught("llava", "sdpa", "several")
    runner = Runner(model("llava"), RANKINGS["last"], weighting=WEIGHTINGS["nearest, mean"])
    whole = runner.to_end(runner.start(given), KEEP)
    state = runner.advance(runner.advance(runner.start(given), 1.0), 0.7)
    assert state.numbers is not None
    before = state.numbers.counts.clone(), state.numbers.bias.clone(), state.hidden.clone()
    other = runner.to_end(state, (1.0, 0.7, 0.3, 0.0))
    assert torch.equal(runner.to_end(state, KEEP), whole) and not torch.equal(other, whole)
    after = state.numbers.counts, state.numbers.bias, state.hidden
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    visual = state.prompt.tokens.are(Kind.IMAGE)
    spoken = torch.where(visual, state.numbers.counts, 0.0)
    left = torch.zeros_like(visual).scatter(1, runner.view(state).visual.clamp(min=0), True)
    left = left & visual
    assert torch.equal((spoken * left).sum(1), state.prompt.total.float()), "somebody is lost"
    assert bool((spoken[left] > 1).any())
    assert state.bytes > replace(state, numbers=None, trail=()).bytes


def test_weights_under_flash_attention_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model("llava")
    config = made.model.language_model.config
    monkeypatch.setattr(config, "_attn_implementation_internal", "flash_attention_2")
    Runner(made, RANKINGS["last"], weighting=WEIGHTINGS["mean alone"])
    with pytest.raises(ValueError, match="leave out --weigh"):
        Runner(made, RANKINGS["last"], weighting=WEIGHTINGS["nearest"])


@pytest.mark.parametrize("within", ["sample", "image"])
def test_a_trial_may_start_at_any_layer_and_what_it_starts_from_stays(within: Any) -> None:
    given = taught("llava", "sdpa", "several")
    runner = Runner(model("llava"), RANKINGS["last"], within)
    whole = runner.to_end(runner.start(given), KEEP)
    state = runner.start(given)
    for share in KEEP[:3]:
        state = runner.advance(state, share)
        before = state.hidden.clone()
        other = runner.to_end(state, [*KEEP[: state.layer], *[0.0] * (LAYERS - state.layer)])
        assert torch.equal(runner.to_end(state, KEEP), whole)
        assert torch.equal(state.hidden, before) and not torch.equal(other, whole)
    wanted = decoded(model("llava"), given, Method(RANKINGS["last"], PerLayer(KEEP), within=within))
    found = model("llava").get_output_embeddings()(whole)
    torch.testing.assert_close(found[given.answered], wanted[given.answered], atol=2e-4, rtol=1e-3)


def test_a_ranking_that_hangs_on_the_count_is_found_anew_for_every_count() -> None:
    """DART's pivots share what is to stay, so what one trial found must not serve another; FastV's serves all."""
    given, shares = taught("llava", "sdpa", "several"), (0.6, 0.3)
    for ranking, entries in (("dart", len(shares)), ("last", 1)):
        runner = Runner(model("llava"), score_of(ranking))
        state = runner.advance(runner.advance(runner.start(given), 1.0), 1.0)
        for share in shares:
            fresh = Runner(model("llava"), score_of(ranking))
            keep = (1.0, 1.0, share, share)
            assert torch.equal(
                runner.to_end(state, keep), fresh.to_end(fresh.start(given), keep)
            ), (ranking, share)
        assert len(state.found) == entries, ranking


@pytest.mark.parametrize(
    ("where", "name", "value", "said"),
    [
        ("decoder", "layer_types", ["sliding_attention"] * LAYERS, "sliding"),
        ("vision", "deepstack_visual_indexes", [1], "DeepStack"),
        ("decoder", "_attn_implementation_internal", "flex_attention", "flex_attention"),
    ],
)
def test_decoders_that_it_would_run_wrongly_are_refused(
    where: str, name: str, value: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = model("llava")
    config = made.config.vision_config if where == "vision" else made.model.language_model.config
    monkeypatch.setattr(config, name, value, raising=False)
    with pytest.raises(ValueError, match=said):
        Runner(made, RANKINGS["last"])


def test_it_counts_what_it_runs() -> None:
    runner = Runner(model("llava"), RANKINGS["even"])
    given = taught("llava", "sdpa", "one")
    state = runner.start(given)
    runner.to_end(state, (1.0, 0.5, 0.5, 0.0))
    assert (runner.tally.layers, runner.tally.towers) == (LAYERS, 1)
    text = 3 + 5 + NEW
    assert runner.tally.rows == 4 * text + 16 + 8 + 8
    runner.to_end(runner.advance(state, 1.0), (1.0,) * LAYERS)
    assert runner.tally.layers == 2 * LAYERS
