"""Scores, schedules, selection and merging by themselves; layering of the package."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import foveate
from foveate.core.schedules import Cut, tokens_kept
from foveate.core.selection import quotas, top
from foveate.core.tokens import Kind, classify
from foveate.cost.flops import kept_by
from foveate.methods import downsample, factories, fastv, parse, random, vtw
from oracles.cases import LISTED

SOURCE = Path(foveate.__file__).parent
STOREYS = (  # from the ground up: each may import from those before it, and from no other
    "core",
    "artefacts",
    "methods",
    "engine",
    "models",
    "world",
    "cost",
    "timing",
    "eval",
    "inspect",
    "doctor",
    "tune",
    "explore",
    "lmms",
    "cli",
)


def test_no_import_runs_upwards_and_core_imports_torch_alone() -> None:
    height = {part: level for level, part in enumerate(STOREYS)}
    assert {p.parent.name for p in SOURCE.glob("*/__init__.py")} == set(STOREYS)
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).parts
        if len(parts) == 1:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom | ast.Import):
                continue
            if isinstance(node, ast.ImportFrom) and node.level:
                base = [*parts[: len(parts) - node.level], *(node.module or "").split(".")]
                named = base[0] if base[0] else node.names[0].name
                own = height[parts[0]]
                assert named == parts[0] or height.get(named, -1) < own, (
                    f"{path} imports {named}, which is above it"
                )
            else:
                names = (
                    [node.module or ""]
                    if isinstance(node, ast.ImportFrom)
                    else [a.name for a in node.names]
                )
                if parts[0] in ("core", "artefacts", "methods"):
                    assert not any(n.startswith("transformers") for n in names), path


def test_commands_import_no_commands() -> None:
    shared = {"asked", "options", "output", "sheet", "tables"}
    for path in (SOURCE / "cli").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                path.name not in ("app.py", "__init__.py")
                and isinstance(node, ast.ImportFrom)
                and node.level == 1
            ):
                named = {node.module} if node.module else {alias.name for alias in node.names}
                assert named <= shared, f"{path} imports {named - shared}"


def test_nothing_asserts_and_no_option_is_an_environment_variable() -> None:
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        assert "environ" not in text, path
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(text))), path


def test_every_method_documents_its_paper_and_deviations() -> None:
    for name, factory in factories().items():
        doc = factory.__doc__ or ""
        assert "Paper: " in doc and "Deviations: " in doc and "Raises:" in doc, name
        assert re.fullmatch(rf"{name}(:.*)?", LISTED[name].method.name)


@given(st.integers(0, 5000), st.floats(0, 1))
def test_fractions_round_half_up(total: int, keep: float) -> None:
    count = int(tokens_kept(torch.tensor([total]), keep)[0])
    assert 0 <= count <= total and abs(count - total * keep) <= 0.5 + 1e-9


@given(
    st.lists(st.lists(st.integers(0, 600), min_size=3, max_size=3), min_size=1, max_size=4),
    st.floats(0, 1),
)
def test_quotas_add_up_and_are_fair(sizes: list[list[int]], keep: float) -> None:
    size = torch.tensor(sizes)
    count = (size.sum(1) * keep).long()
    share = quotas(count, size)
    assert torch.equal(share.sum(1), count) and bool((share <= size).all())
    assert bool(
        (
            (share - count[:, None] * size / size.sum(1, keepdim=True).clamp(min=1)).abs()
            < 1 + 1e-6
        ).all()
    )


def test_top_breaks_ties_by_place_and_stays_within_the_mask() -> None:
    keep = top(
        torch.tensor([[1.0, 2.0, 2.0, 9.0]]),
        torch.tensor([[True, True, True, False]]),
        torch.tensor([2]),
    )
    assert keep.tolist() == [[False, True, True, False]]


def test_a_prompt_is_told_apart() -> None:
    visual = torch.tensor([[0, 0, 1, 1, 1, 1, 0, 0]]).bool()
    real = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1]]).bool()
    tokens = classify(visual, real, per_image=2)
    assert tokens.kind.tolist() == [
        [Kind.PADDING, Kind.SYSTEM, *[Kind.IMAGE] * 4, *[Kind.INSTRUCTION] * 2]
    ]
    assert tokens.image.tolist() == [[-1, -1, 0, 0, 1, 1, -1, -1]]
    assert classify(visual, real).image.tolist() == [[-1, -1, 0, 0, 0, 0, -1, -1]]
    grown = tokens.with_responses(9).extended(tokens)
    assert grown.kind[0, 8] == Kind.RESPONSE and grown.image.amax() == 3


def test_schedules_tell_their_counts_without_a_model() -> None:
    assert kept_by([fastv(layer=2, keep=0.5)], 4, 576) == [576, 576, 288, 288]
    assert kept_by([random(layer=0, keep=64), vtw(layer=3)], 4, 576) == [64, 64, 64, 0]
    with pytest.raises(ValueError, match="layers 0 to 3"):
        Cut(4, 0.5).check(4)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("fastvv", "did you mean 'fastv'"),
        ("fastv:layr=2", "did you mean 'layer'"),
        ("fastv:layer=x", "expected int"),
        ("fastv:keep=1.5", "fraction in"),
        ("fastv:keep=nan", "fraction in"),
        ("fastv:keep=-3", "fraction in"),
        ("fastv:layer=0", "1 or more"),
        ("fastv:rate=2", "fraction removed"),
        ("fastv:within=all", "sample, image"),
        ("downsample:pool=maybe", "true or false"),
        ("vtw:layer", "has no value"),
        ("vtw:layer=-1", "0 or more"),
        ("", "unknown method"),
    ],
)
def test_bad_specs_say_what_is_wrong(spec: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        parse(spec)


def test_specs_give_what_the_factories_give() -> None:
    assert parse("fastv:layer=3,keep=64+vtw:layer=5") == [fastv(layer=3, keep=64), vtw(layer=5)]
    assert parse("downsample:pool=true,keep=0.5") == [downsample(keep=0.5, pool=True)]
    assert parse("fastv:rate=0.75")[0].schedule == Cut(2, 0.25)
    with pytest.raises(AttributeError, match="no method"):
        _ = foveate.methods.nothing
