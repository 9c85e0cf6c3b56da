"""The bundled model, its world, and its recipe."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoProcessor, LlavaForConditionalGeneration

import foveate
from foveate.eval.tasks import bundled
from foveate.models.load import BUNDLED, load
from foveate.models.prompts import prompt
from foveate.world import language
from foveate.world.draw import draw
from foveate.world.easyvqa import EasyVQA
from foveate.world.scenes import EDGE, GRID, PLACES, SIDE, sample
from judging import found, judged
from lab import conversations, grounding, model
from lab.export import export
from lab.model import SPECIAL, build_model, build_processor, vocabulary
from lab.muon import orthogonalise
from lab.tower import GROUPS, dense_example
from lab.training import Recipe, train, weights_hash

SPLITS = st.sampled_from(["train", "val", "test"])
DIALECT = model.dialect()


@given(SPLITS, st.integers(0, 10**9))
def test_a_scene_is_a_function_of_its_seed_and_keeps_its_margins(split: str, index: int) -> None:
    scene = sample(split, index)
    assert scene == sample(split, index)
    assert np.array_equal(draw(scene).pixels, draw(scene).pixels)
    assert 1 <= len(scene.things) <= 8
    assert len({t.cell for t in scene.things}) == len(scene.things)
    for thing in scene.things:
        for at in (thing.x, thing.y):
            assert min(abs(at - SIDE / 3), abs(at - 2 * SIDE / 3)) >= EDGE - 1e-6
        assert PLACES[thing.cell] == thing.place


def test_splits_share_no_scene() -> None:
    scenes = {
        split: {repr(sample(split, i).things) for i in range(300)}
        for split in ("train", "val", "test")
    }
    assert not scenes["train"] & scenes["test"] and not scenes["val"] & scenes["test"]


@given(st.integers(0, 10**6))
def test_texts_are_true_short_and_in_the_vocabulary(index: int) -> None:
    scene, known = sample("train", index), set(vocabulary())
    text = language.describe(scene)
    assert language.parse_description(text) == language.attributes(scene)
    assert len(DIALECT.encode(text)) < 64
    rng = np.random.default_rng(index)
    turns = [t for kind in language.KINDS if (t := language.ask(scene, kind, rng))]
    unknown = SPECIAL.index("<unk>")
    for said in [text, *language.captions(scene), *(f"{t.question} {t.answer}" for t in turns)]:
        assert unknown not in DIALECT.encode(said), said
    assert len(set(language.captions(scene))) == 5
    for turn in turns:
        if turn.kind == "count":
            assert turn.answer in known


def test_descriptions_that_are_wrong_count_as_wrong() -> None:
    right = language.describe(sample("test", 1))
    broken = right.replace("red", "blue").replace("small", "tiny")
    asked = bundled(["descriptions"], 1, first=1)
    assert judged(asked, [right])["descriptions object-recall"] == 100
    assert judged(asked, [broken])["descriptions object-recall"] < 100
    assert judged(asked, [""])["descriptions object-recall"] == 0


def test_yes_and_no_are_balanced() -> None:
    for kind in ("existence", "relation"):
        rng = np.random.default_rng(0)
        answers = [t.answer for i in range(800) if (t := language.ask(sample("val", i), kind, rng))]
        assert 0.44 < answers.count("yes") / len(answers) < 0.56


def test_dense_labels_say_what_is_drawn() -> None:
    _, (groups, _, part, count, _) = dense_example("train", 3)
    scene = sample("train", 3)
    assert count == len(scene.things) == (part == 2).sum()
    for thing in scene.things:
        patch = int(thing.y) // 16 * GRID + int(thing.x) // 16
        told = {
            key: options[groups[row, patch]] for row, (key, options) in enumerate(GROUPS.items())
        }
        assert told["place"] == thing.place or groups[0, patch] == -100


def test_every_object_can_count_alike() -> None:
    """Dense labels: without `even` every labelled token weighs one; with it the tokens of an object do together."""
    scene = sample("train", 3)
    _, (groups, plain, *_) = dense_example("train", 3)
    _, (same, even, *_) = dense_example("train", 3, even=True)
    assert (groups == same).all() and (plain == (groups[0] >= 0)).all()
    place = groups[list(GROUPS).index("place")]
    totals = {PLACES[k]: even[place == k].sum() for k in set(place[place >= 0].tolist())}
    assert totals.keys() == {t.place for t in scene.things} and len(totals) > 1
    assert all(abs(total - 1) < 1e-6 for total in totals.values()), totals
    assert plain[place >= 0].sum() > 2 * len(totals), "or the two would say the same"


def test_descriptions_can_say_where_the_next_object_is() -> None:
    """With `ahead`, the token before every object of a description is marked with that object's patch."""
    scene = sample("train", 3)
    marks = {}
    for ahead in (False, True):
        pixels, turns = conversations.scene_turns("train", 3, ahead=ahead)
        row = conversations.pack(pixels, turns[:1], np.random.default_rng(0), DIALECT)
        marks[ahead] = row.named[row.named[:, 0] >= 0]
        if ahead:  # the target of the token before an object is the first word of that object
            first = [DIALECT.encode(t.size)[0] for t in scene.things]
            assert row.target[row.named[:, 0] >= 0].tolist() == first
    assert len(marks[False]) == 0 and marks[True].tolist() == [
        list(grounding.target((t.x, t.y), DIALECT.grid)) for t in scene.things
    ]


def test_training_text_is_what_the_processor_makes_of_a_chat() -> None:
    """One prefix, one question: the ids of a packed row are those of the chat template."""
    processor = build_processor()
    pixels, turns = conversations.scene_turns("train", 5)
    row = conversations.pack(pixels, turns[:1], np.random.default_rng(0), DIALECT)
    text = prompt(processor, 1, turns[0].question)
    ids = processor(images=draw(sample("train", 5)).image, text=text, return_tensors="pt")[
        "input_ids"
    ][0]
    assert row.ids[: len(ids)].tolist() == ids.tolist()
    answer = processor.tokenizer(turns[0].answer, add_special_tokens=False)["input_ids"]
    at = len(ids) - 1
    assert row.target[at : at + len(answer) + 1].tolist() == [
        *answer,
        processor.tokenizer.eos_token_id,
    ]


def test_named_objects_are_where_the_words_end() -> None:
    """Every mention marks the last token of its words, with the patch of the object's centre or as absent."""
    marked: set[tuple[str, bool]] = set()
    for index in range(40):
        pixels, turns = conversations.scene_turns("train", index)
        centres = {grounding.target((t.x, t.y)) for t in sample("train", index).things}
        for turn in turns:
            row = conversations.pack(pixels, [turn], np.random.default_rng(index), DIALECT)
            at = np.flatnonzero(row.named[:, 0] >= 0)
            ends = [len(DIALECT.prefix) + len(DIALECT.encode(m.until)) - 1 for m in turn.mentions]
            assert at.tolist() == ends
            for end, mention in zip(ends, turn.mentions, strict=True):
                where = tuple(int(v) for v in row.named[end])
                assert where in centres if mention.where else where == grounding.target(None)
                marked.add((turn.kind, mention.where is None))
    about_one = {(kind, False) for kind in ("color", "shape", "position", "existence", "relation")}
    assert marked == about_one | {("existence", True)}


def test_a_batch_that_names_nothing_has_no_grounding_loss() -> None:
    head = grounding.Grounding(build_model(), 4)
    states = torch.randn(2, 3, 192)
    nothing = torch.full((2, 3, 2), -100)
    assert head(states, nothing)[0] == 0
    nothing[0, 1] = 4
    assert head(states, nothing)[0] > 0


def test_packed_segments_do_not_see_each_other() -> None:
    segment = torch.tensor([[0, 0, 1, 1, 2, -1]])
    seen = conversations.visible(segment)[0, 0]
    assert seen[4].tolist() == [True, True, False, False, True, False]
    assert seen[3].tolist() == [True, True, True, True, False, False]


@given(st.integers(2, 12), st.integers(2, 12))
def test_muon_makes_singular_values_alike(rows: int, columns: int) -> None:
    values = torch.linalg.svdvals(
        orthogonalise(torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)))
    )
    assert values.max() < 1.35


def test_training_resumes_to_the_same_weights(tmp_path: Path) -> None:
    recipe = Recipe(tower_steps=2, tower_batch=2, steps=3, batch=2, warmup=1, easy_vqa=0.5, ramp=4)
    whole = train(tmp_path / "whole", recipe, save_every=1)

    class StopError(Exception):
        pass

    def stop(stage: str, seen: dict[str, float]) -> None:
        if (stage, seen["step"]) in ran:
            raise StopError
        ran.append((stage, seen["step"]))

    ran: list[tuple[str, float]] = [
        ("tower", 2),
        ("chat", 3),
    ]  # where to stop; a stopped step is done again
    for _ in range(2):
        with pytest.raises(StopError):
            train(tmp_path / "part", recipe, report=stop, save_every=1)
        ran.pop(0)
    with pytest.raises(ValueError, match="another recipe"):
        train(tmp_path / "part", replace(recipe, lr=1.0))
    ran.clear()
    resumed = train(
        tmp_path / "part", recipe, report=lambda stage, seen: ran.append((stage, seen["step"]))
    )
    assert ran == [("chat", 3)], "it must take up where it was stopped"
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    with pytest.raises(ValueError, match="already falls"):
        train(tmp_path / "part", replace(recipe, steps=30))


def test_a_run_goes_on_from_a_finished_model(tmp_path: Path) -> None:
    recipe = Recipe(tower_steps=1, tower_batch=1, steps=1, batch=1, easy_vqa=0.0)
    export(train(tmp_path / "first", recipe), tmp_path / "first" / "final", recipe)
    finished = tmp_path / "first" / "final"
    further = replace(recipe, start=weights_hash(finished), tower_steps=0, skip=2, ramp=0, lr=0.0)
    same = train(tmp_path / "second", further, start=finished)
    assert not (tmp_path / "second" / "tower.safetensors").exists()
    again = LlavaForConditionalGeneration.from_pretrained(finished)
    for name, value in again.state_dict().items():
        torch.testing.assert_close(same.state_dict()[name], value, atol=0, rtol=0, msg=name)
    export(same, tmp_path / "second" / "final", further, finished)
    facts = json.loads((tmp_path / "second" / "final" / "training.json").read_text())
    assert facts["before"]["recipe"] == asdict(recipe) and facts["recipe"]["start"] == further.start
    with pytest.raises(ValueError, match="is not these"):
        train(tmp_path / "third", replace(further, start="0" * 64), start=finished)
    with pytest.raises(ValueError, match="is not these"):
        train(tmp_path / "third", further)


def test_an_exported_model_is_plain_transformers(tmp_path: Path) -> None:
    recipe = Recipe(tower_steps=1, tower_batch=1, steps=1, batch=1, easy_vqa=0.0)
    made = train(tmp_path / "run", recipe)
    export(made, tmp_path / "out", recipe)
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    for name, value in made.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, atol=1e-3, rtol=1e-3)
    assert again.dtype == torch.float32
    facts = json.loads((tmp_path / "out" / "training.json").read_text())
    assert facts["recipe"] == asdict(recipe)
    assert AutoProcessor.from_pretrained(tmp_path / "out").chat_template


@pytest.fixture(scope="module")
def scenes() -> Any:
    return load("scenes")


def test_the_bundled_model_is_small_offline_and_plain(scenes: Any) -> None:
    assert sum(f.stat().st_size for f in BUNDLED["scenes"].iterdir()) < 30e6
    assert (BUNDLED["scenes"] / "README.md").exists()
    assert isinstance(scenes.model, LlavaForConditionalGeneration)


def test_the_bundled_model_sees_and_needs_its_tokens(scenes: Any) -> None:
    """Far better than chance on unseen pictures; half the tokens dropped at random clearly hurts."""
    asked = bundled(["descriptions"], 16, split="val")
    full, half = (
        found(scenes, asked, methods)
        for methods in ([], [foveate.methods.random(layer=0, keep=0.5)])
    )
    assert full["descriptions object-recall"] > 70
    assert half["descriptions object-recall"] < full["descriptions object-recall"] - 10


def test_easy_vqa_is_found_when_installed() -> None:
    data = EasyVQA.find()
    assert data is not None
    assert data.images("test") == 1000
    assert sum(len(data.turns("test", i)[1]) for i in range(1000)) == 9673
    known = set(vocabulary())
    for question in bundled(["easy-vqa"], pictures=20):
        assert {*question.references} <= known
