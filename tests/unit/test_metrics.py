"""Metrics against values worked out by hand or by the library itself; bootstrap against what it must give."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider

from foveate.eval.intervals import difference, estimate
from foveate.eval.metrics import GROUPS, METRICS, TOKENIZERS, named, remembering
from foveate.eval.metrics.metric import Judged, share
from foveate.eval.metrics.short import distance, normal_vqa, says_yes


def judged(
    answers: Sequence[str],
    references: Sequence[tuple[str, ...]],
    groups: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
) -> Judged:
    many = len(answers)
    return Judged(
        answers,
        references,
        groups or list(map(str, range(many))),
        kinds or [""] * many,
        TOKENIZERS["words"],
    )


def figure(name: str, given: Judged) -> float:
    metric = METRICS[name]
    return float(metric.value(metric.parts(given).sum(0, keepdims=True))[0])


def test_exact_match_looks_past_case_blanks_and_the_period() -> None:
    assert figure(
        "exact", judged([" Red. ", "blue", "a b"], [("red",), ("green", "Blue"), ("ab",)])
    ) == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("agree", "want"), [(0, 0.0), (1, 30.0), (2, 60.0), (3, 90.0), (4, 100.0), (10, 100.0)]
)  # of ten annotators, mean over leaving each out of min(1, others / 3): (1 x 0 + 9 x 1/3) / 10 for one that agrees
def test_vqa_accuracy_leaves_every_annotator_out_once(agree: int, want: float) -> None:
    references = ("The Two.",) * agree + tuple(f"other {i}" for i in range(10 - agree))
    assert figure("vqa", judged(["2"], [references])) == pytest.approx(want)


def test_vqa_answers_are_compared_in_a_normal_form() -> None:
    assert normal_vqa("The red, car's  a  Two!") == "red cars 2"
    assert normal_vqa("1,000") == "1000" and normal_vqa("3.5 m.") == "3.5 m"


def test_anls_gives_nothing_below_one_half() -> None:
    assert distance("kitten", "sitting") == 3 and distance("", "abc") == 3
    found = figure(
        "anls", judged(["Kitten", "abcd", "x"], [("kitten",), ("abce", "zzzz"), ("yyyy",)])
    )
    assert found == pytest.approx(100 * (1 + 0.75 + 0) / 3)


@given(*[st.text("abc", max_size=6)] * 3)
def test_edit_distance_is_a_metric(a: str, b: str, c: str) -> None:
    assert distance(a, b) == distance(b, a) and (distance(a, b) == 0) == (a == b)
    assert distance(a, c) <= distance(a, b) + distance(b, c)


def test_pope_counts_yes_as_positive() -> None:
    assert (
        says_yes("Yes, there is.")
        and not says_yes("No, there is none")
        and not says_yes("There is not.")
    )
    given = judged(["yes", "Yes.", "no", "no"], [("yes",), ("no",), ("yes",), ("no",)])
    assert figure("pope-f1", given) == pytest.approx(50)
    assert figure("pope-accuracy", given) == 50 and figure("pope-yes", given) == 50
    assert figure("pope-f1", judged(["no"], [("yes",)])) == 0


def test_mme_adds_accuracy_and_accuracy_plus_over_kinds() -> None:
    given = judged(
        ["yes", "no", "yes", "yes", "no", "no"],
        [("yes",), ("no",), ("yes",), ("no",), ("no",), ("yes",)],
        ["1", "1", "2", "2", "1", "1"],
        ["existence"] * 4 + ["count"] * 2,
    )
    assert figure("mme", given) == pytest.approx(75 + 50 + 50 + 0)


CAPTIONS = (
    [
        "a red star on a blue ground.",
        "two small circles",
        "a ring and a large heart, both green",
        "a dog",
    ],
    [
        ("a red star on a plain background", "one red star"),
        ("two small circles at the top", "two circles"),
        ("a ring and a heart, both green",),
        ("an elephant in the room",),
    ],
)


def test_caption_metrics_are_the_librarys_own() -> None:
    answers, references = CAPTIONS
    words = TOKENIZERS["words"]
    wanted = {i: words(refs) for i, refs in enumerate(references)}
    given = {i: words([a]) for i, a in enumerate(answers)}
    assert figure("bleu-4", judged(*CAPTIONS)) == pytest.approx(
        100 * Bleu(4).compute_score(wanted, given, 0)[0][3]
    )
    assert figure("cider", judged(*CAPTIONS)) == pytest.approx(
        100 * Cider().compute_score(wanted, given)[0]
    )
    assert 0 < figure("rouge-l", judged(*CAPTIONS)) < 100


@pytest.mark.skipif(shutil.which("java") is None, reason="the PTB tokenizer needs java")
def test_the_ptb_tokenizer_says_the_same_of_plain_words() -> None:
    texts = ["A red star, on blue.", "", "two  circles"]
    assert TOKENIZERS["ptb"](texts) == TOKENIZERS["words"](texts)


def test_a_tokenizer_is_asked_once_about_each_text() -> None:
    asked: list[str] = []

    def tokenize(texts: Sequence[str]) -> list[str]:
        asked.extend(texts)
        return [text.upper() for text in texts]

    words = remembering(tokenize)
    assert (
        words(["a", "b", "a"]) == ["A", "B", "A"]
        and words(["b", "c"]) == ["B", "C"]
        and asked == ["a", "b", "c"]
    )


def test_descriptions_are_judged_by_whole_objects() -> None:
    truth = ("small red star top left, large striped blue circle center.",)
    given = judged(["small red star top left, large blue circle center, a thing."], [truth])
    assert figure("object-recall", given) == 50 and figure(
        "object-precision", given
    ) == pytest.approx(100 / 3)


def test_names_of_metrics() -> None:
    assert named("pope") == GROUPS["pope"] and all(
        name in METRICS for names in GROUPS.values() for name in names
    )
    with pytest.raises(ValueError, match="did you mean 'cider'"):
        named("ciderr")
    with pytest.raises(ValueError, match="4 annotators"):
        METRICS["vqa"].check(("one",))


def test_the_interval_of_a_mean_is_what_theory_says() -> None:
    rng = np.random.default_rng(1)
    right = (rng.random(400) < 0.7).astype(float)
    parts = np.stack([right, np.ones(400)], 1)
    found = estimate(parts, list(map(str, range(400))), share)
    width = 2 * 1.96 * 100 * np.sqrt(right.mean() * (1 - right.mean()) / 400)
    assert found.value == pytest.approx(100 * right.mean())
    assert found.high - found.low == pytest.approx(width, rel=0.08)


def test_questions_about_one_picture_are_drawn_together() -> None:
    right = np.repeat(np.arange(40) % 2, 10).astype(float)
    parts = np.stack([right, np.ones(400)], 1)
    alone = estimate(parts, list(map(str, range(400))), share)
    clustered = estimate(parts, [str(i // 10) for i in range(400)], share)
    assert (clustered.high - clustered.low) / (alone.high - alone.low) == pytest.approx(
        np.sqrt(10), rel=0.15
    )


def test_a_paired_difference_is_narrower_than_two_intervals_and_nothing_to_itself() -> None:
    rng = np.random.default_rng(2)
    theirs = np.stack([(rng.random(300) < 0.6).astype(float), np.ones(300)], 1)
    ours = theirs.copy()
    ours[:12, 0] = 0
    groups = list(map(str, range(300)))
    gap, apart = difference(ours, theirs, groups, share), estimate(theirs, groups, share)
    assert (
        gap.value
        == pytest.approx(
            (share(ours.sum(0, keepdims=True)) - share(theirs.sum(0, keepdims=True)))[0]
        )
        and gap.high < 0
    )
    assert gap.high - gap.low < 0.5 * (apart.high - apart.low)
    same = difference(theirs, theirs, groups, share)
    assert (same.value, same.low, same.high) == (0, 0, 0)
