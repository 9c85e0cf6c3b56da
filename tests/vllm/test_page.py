"""docs/serving.md says of families what the tests run."""

from __future__ import annotations

from pathlib import Path

from test_exact import FAMILIES

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


def test_families_named_as_tested_are_those_of_the_tests() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    tested = [row for row in rows if "| tested" in row]
    named = {word for row in tested for word in row.split("|")[1].split("`")[1::2]}
    assert named == set(FAMILIES)
