"""docs/serving-families.md says what the tests run."""

from __future__ import annotations

import test_before
import test_exact
import tiny

from table import NOT_TESTED, PAGE, table


def test_the_page_is_what_the_tests_run() -> None:
    assert PAGE.read_text() == table(), "make vllm-families"


def test_every_family_is_told() -> None:
    assert set(NOT_TESTED) == set(tiny.FAMILIES) - set(test_exact.FAMILIES)
    assert set(test_before.FAMILIES) <= set(test_exact.FAMILIES)
    rows = [line.split("|")[1:-1] for line in table().splitlines() if line.startswith("| ")]
    tested = {row[0].strip() for row in rows if row[1].strip().isdigit()}
    assert tested == set(test_exact.FAMILIES)
