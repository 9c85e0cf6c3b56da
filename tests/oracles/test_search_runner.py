"""A search's trial equals `generate` under `apply`, prefill and decoding step by step; it starts where it may."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate.artefacts.weighting import UNWEIGHED, Weighting
from foveate.core.method import Method
from foveate.core.schedules import PerLayer
from foveate.core.scores import RANKINGS
from foveate.core.tokens import Kind
from foveate.engine.anatomy import anatomy_of
from foveate.methods import score_of
from foveate.tune.search.runner import Runner
from foveate.tune.train.dyrate.rollout import Batch
from models.families import FAMILIES
from models.families import model as family_model
from models.tiny import IMAGE, LAYERS, Layout, batch, model
from oracles.cached import decoded
from oracles.crossing import CLOSE
from oracles.layouts import hooks
from oracles.teaching import PAIRS, SLICE, asked, followed, some_answers

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
    inputs = batch(family, LAYOUTS[layout], backend).inputs
    return followed(model(family, backend), inputs, some_answers(len(inputs["input_ids"]), NEW))


def trial(made: Any, runner: Runner, given: Batch, keep: tuple[float, ...]) -> Tensor:
    """Logits of the answers' words, by a run that stands twice on its way."""
    state = runner.reach(runner.reach(runner.start(given), keep[:1]), keep[:3])
    return anatomy_of(made).logits(runner.to_end(state, keep))


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
CROSSED = [  # every ranking, and methods' scores, on ragged batches; every layout
    *(
        (ranking, "llava", "sdpa", layout)
        for ranking in (*RANKINGS, *METHODS)
        for layout in ("ragged", "several")
    ),
    *(("mix", "llava", "sdpa", layout) for layout in ("one", "ends in an image")),
    *(("layers", "llava_next", "eager", layout) for layout in ("ragged", "ends in an image")),
]


@pytest.mark.parametrize(("ranking", "family", "backend", "layout"), CROSSED)
def test_layer_by_layer_equals_apply(ranking: str, family: str, backend: str, layout: str) -> None:
    made, given = model(family, backend), taught(family, backend, layout)
    found = trial(made, Runner(made, score_of(ranking)), given, KEEP)
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
SPOKEN = [  # every kind and layout; rankings that look at rows, keys or states of weighed layers
    *((kind, "last", "llava", "sdpa", "several") for kind in WEIGHTINGS),
    *(("mixed, mean", "last", "llava", "sdpa", layout) for layout in LAYOUTS),
    *(
        ("nearest, mean", ranking, "llava", "sdpa", "ragged")
        for ranking in (*RANKINGS, "dart", "sparsevlm", "divprune", "vscan2")
    ),
    ("mixed, mean", "layers", "llava_next", "eager", "ends in an image"),
]


@pytest.mark.parametrize(("kind", "ranking", "family", "backend", "layout"), SPOKEN)
def test_weights_and_means_layer_by_layer_equal_apply(
    kind: str, ranking: str, family: str, backend: str, layout: str
) -> None:
    made, given = model(family, backend), taught(family, backend, layout)
    weighting = WEIGHTINGS[kind]
    found = trial(made, Runner(made, score_of(ranking), weighting=weighting), given, KEEP)
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
        other = trial(made, Runner(made, score_of(ranking), weighting=less), given, KEEP)
        assert (other - wanted)[has].abs().max() > 0.005, f"{less} gives the same"


WIDER = {"none": UNWEIGHED, "nearest, mean": Weighting("nearest", "mean", cutoff=0.0)}


def check(name: str, backend: str, ranking: str, kind: str, differs: bool = True) -> None:
    """A trial is `generate` under `apply`, in one family; and not the plain model, if it `differs`."""
    made, weighting = family_model(name, backend), WIDER[kind]
    given = followed(made, asked(name), some_answers(3, NEW))
    runner = Runner(made, score_of(ranking), weighting=weighting)
    found = trial(made, runner, given, KEEP)
    wanted = decoded(made, given, runner.method(score_of(ranking), KEEP))
    there = given.answered
    torch.testing.assert_close(found[there], wanted[there], **CLOSE)
    plain = decoded(made, given)
    assert not differs or (plain - wanted)[there].abs().max() > 0.01, (
        "nothing was dropped, so this test could not fail"
    )


@pytest.mark.parametrize(("name", "backend"), SLICE)
def test_a_trial_is_apply_in_every_family(name: str, backend: str) -> None:
    check(name, backend, "mix", "nearest, mean")


@pytest.mark.slow
@pytest.mark.parametrize("kind", WIDER)
@pytest.mark.parametrize(("name", "backend"), PAIRS)
def test_a_trial_is_apply_on_every_backend(name: str, backend: str, kind: str) -> None:
    check(name, backend, "mix", kind)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("ranking", [*RANKINGS, *METHODS])
def test_every_ranking_in_every_family(ranking: str, name: str) -> None:
    backend = FAMILIES[name].backends[0]
    made = family_model(name, backend)
    given = followed(made, asked(name), some_answers(3, NEW))
    try:
        trial(made, Runner(made, score_of(ranking)), given, KEEP)
    except ValueError as refusal:  # a tower that nobody can look at
        with pytest.raises(ValueError, match=re.escape(str(refusal))):
            decoded(made, given, Method(score_of(ranking), PerLayer(KEEP)))
        return
    # `received` drops what nobody looks at, and attention is sharp here: there the answer may stay.
    check(name, backend, ranking, "none", differs=ranking != "received")


def test_trials_that_share_a_prefix_share_no_numbers() -> None:
    given = taught("llava", "sdpa", "several")
    runner = Runner(model("llava"), RANKINGS["last"], weighting=WEIGHTINGS["nearest, mean"])
    whole = runner.to_end(runner.start(given), KEEP)
    state = runner.reach(runner.start(given), KEEP[:2])
    numbers = state.at.numbers
    assert numbers is not None
    before = numbers.counts.clone(), numbers.bias.clone(), state.at.hidden.clone()
    other = runner.to_end(state, (1.0, 0.7, 0.3, 0.0))
    assert torch.equal(runner.to_end(state, KEEP), whole) and not torch.equal(other, whole)
    after = numbers.counts, numbers.bias, state.at.hidden
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    visual = state.at.taught.tokens.are(Kind.IMAGE)
    columns = state.at.coming.rows.columns(*visual.shape[:1], visual.device)
    there = torch.zeros((len(visual), visual.shape[1] + 1), dtype=torch.bool)
    columns = torch.where(columns < 0, visual.shape[1], columns)  # fills: a spare last column
    left = there.scatter(1, columns, True)[:, :-1] & visual
    spoken = torch.where(visual, numbers.counts, 0.0)
    assert torch.equal((spoken * left).sum(1), state.at.taught.total.float()), "somebody is lost"
    assert bool((spoken[left] > 1).any())
    assert state.bytes > replace(state, at=replace(state.at, trail=())).bytes


@pytest.mark.parametrize("within", ["sample", "image"])
def test_a_trial_may_start_at_any_layer_and_what_it_starts_from_stays(within: Any) -> None:
    given = taught("llava", "sdpa", "several")
    runner = Runner(model("llava"), RANKINGS["last"], within)
    whole = runner.to_end(runner.start(given), KEEP)
    state = runner.start(given)
    for layer in range(1, 4):
        state = runner.reach(state, KEEP[:layer])
        before = state.at.hidden.clone()
        other = runner.to_end(state, [*KEEP[:layer], *[0.0] * (LAYERS - layer)])
        assert torch.equal(runner.to_end(state, KEEP), whole)
        assert torch.equal(state.at.hidden, before) and not torch.equal(other, whole)
    wanted = decoded(model("llava"), given, Method(RANKINGS["last"], PerLayer(KEEP), within=within))
    found = model("llava").get_output_embeddings()(whole)
    torch.testing.assert_close(found[given.answered], wanted[given.answered], atol=2e-4, rtol=1e-3)


def test_a_ranking_that_hangs_on_the_count_is_found_anew_for_every_count() -> None:
    """DART's pivots share what is to stay, so what one trial found must not serve another; FastV's serves all."""
    given, shares = taught("llava", "sdpa", "several"), (0.6, 0.3)
    for ranking, entries in (("dart", len(shares)), ("last", 1)):
        runner = Runner(model("llava"), score_of(ranking))
        state = runner.reach(runner.start(given), (1.0, 1.0))
        for share in shares:
            fresh = Runner(model("llava"), score_of(ranking))
            keep = (1.0, 1.0, share, share)
            assert torch.equal(
                runner.to_end(state, keep), fresh.to_end(fresh.start(given), keep)
            ), (ranking, share)
        assert len(state.found) == entries, ranking


def test_nothing_runs_inside_apply() -> None:
    made, given = model("llava"), taught("llava", "sdpa", "one")
    runner = Runner(made, RANKINGS["last"])
    state = runner.start(given)
    with foveate.apply(made):
        for run in (lambda: runner.start(given), lambda: runner.to_end(state, KEEP)):
            with pytest.raises(RuntimeError, match="outside of the with block"):
                run()
    runner.to_end(state, KEEP)
    with foveate.apply(made):
        pass


def test_the_model_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    made, given = model("llava"), taught("llava", "sdpa", "ragged")
    before, layers = hooks(made), made.model.language_model.layers
    plain = made(**given.inputs).logits
    runner = Runner(made, RANKINGS["tower"])
    state = runner.reach(runner.start(given), KEEP[:2])
    runner.to_end(state, KEEP)

    def fail(*_: Any, **__: Any) -> None:
        raise ArithmeticError

    monkeypatch.setattr(layers[3].mlp, "forward", fail)
    with pytest.raises(ArithmeticError):
        runner.to_end(state, KEEP)
    monkeypatch.undo()
    assert hooks(made) == before and made.model.language_model.layers is layers
    assert torch.equal(made(**given.inputs).logits, plain)


def test_it_counts_what_it_runs() -> None:
    runner = Runner(model("llava"), RANKINGS["even"])
    given = taught("llava", "sdpa", "one")
    state = runner.start(given)
    runner.to_end(state, (1.0, 0.5, 0.5, 0.0))
    tally = runner.replay.tally
    assert (tally.layers, tally.towers) == (LAYERS, 1)
    text = 3 + 5 + NEW
    assert tally.rows == 4 * text + 16 + 8 + 8
    runner.to_end(runner.reach(state, (1.0,)), (1.0,) * LAYERS)
    assert tally.layers == 2 * LAYERS
