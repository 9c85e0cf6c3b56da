"""Weights and means as text, and what cannot be."""

from __future__ import annotations

import re

import pytest

import foveate
from foveate.core.weighing import Cell, Clusters, Mean, Nearest, Uniform
from foveate.methods import parse
from foveate.methods.spec import read, write


@pytest.mark.parametrize(
    ("knobs", "weigh", "merge"),
    [
        ("weigh=nearest", Nearest(), None),
        ("weigh=nearest,merge=mean", Nearest(), Mean(Nearest())),
        ("merge=mean", None, Mean(Nearest())),
        ("weigh=cell,merge=mean,cutoff=0.5", Cell(), Mean(Cell(), 0.5)),
        ("weigh=mixed,place=0.3", Nearest(place=0.3), None),
        ("weigh=mixed", Nearest(place=1.0), None),
        ("weigh=uniform,strength=0.5,merge=mean", Uniform(0.5), Mean(Nearest())),
        ("weigh=none,merge=none", None, None),
    ],
)
@pytest.mark.parametrize(
    "base", ["divprune:keep=0.25", "fastv", "score=dart,schedule=pdrop:keep=0.6"]
)
def test_every_method_and_every_one_of_parts_takes_them(
    base: str, knobs: str, weigh: object, merge: object
) -> None:
    spec = f"{base}{',' if ':' in base else ':'}{knobs}"
    (made,) = parse(spec)
    (plain,) = parse(base)
    assert (made.weigh, made.merge) == (weigh, merge)
    assert (made.score, made.schedule) == (plain.score, plain.schedule)
    (again,) = parse(made.name)
    assert (again.weigh, again.merge, again.name) == (weigh, merge, made.name)
    assert parse(write(read(spec)))[0].weigh == weigh


def test_clusters_are_the_methods_own() -> None:
    for name in ("tome", "dymu", "prumerge", "visionzip", "vscan1", "sparsevlm"):
        (made,) = parse(f"{name}:weigh=clusters")
        assert made.weigh == Clusters() and made.merge == parse(name)[0].merge is not None
    assert parse("downsample:pool=true,weigh=clusters")[0].weigh == Clusters()


def test_methods_without_them_weigh_nothing() -> None:
    assert all(parse(name)[0].weigh is None for name in ("divprune", "tome", "fastv"))


def test_a_method_in_python_is_the_one_in_text() -> None:
    method = foveate.methods.divprune(keep=0.25).weighted()
    assert method == parse("divprune:keep=0.25,weigh=nearest,merge=mean")[0].named(method.name)
    assert parse(method.name)[0] == method


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("divprune:weigh=clusters", "no merge that puts every dropped token into one"),
        ("prumerge:merging=neighbours,weigh=clusters", "no merge that puts every dropped token"),
        ("tome:weigh=clusters,merge=mean", "merge=own"),
        ("divprune:weigh=near", "nearest"),
        ("divprune:weight=nearest", "did you mean 'weigh'"),
        ("divprune:merge=avg", "mean"),
        ("divprune:weigh=nearest,place=1", "place=1.0 goes with weigh=mixed"),
        ("divprune:weigh=nearest,cutoff=0.5", "cutoff=0.5 goes with merge=mean"),
        ("divprune:strength=0.5", "goes with a kind of weights"),
        ("divprune:weigh=nearest,strength=-1", "expected a number, 0 or more"),
        ("divprune:weigh=nearest,strength=nan", "expected a number, 0 or more"),
        ("divprune:weigh=mixed,place=-1", "expected a number, 0 or more"),
        ("divprune:merge=mean,cutoff=2", "expected a cosine"),
        ("divprune:weigh", "weigh=value"),
        ("divprune:weigh=nearest,weigh=cell", "twice"),
        ("score=dart,schedule=pdrop,weigh=clusters", "no merge that puts every dropped token"),
        ("score=dart,schedule=pdrop,merge=meen", "did you mean"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(spec: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        parse(spec)
