"""Tables at any width: no figure is lost, no name is torn apart."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from foveate.cli.sheet import Sheet, broken

NAME = "divprune:keep=0.125,weigh=nearest,merge=mean"
WIDTHS = (30, 40, 60, 80, 140)


def printed(sheet: Sheet, width: int) -> list[str]:
    out = Console(file=io.StringIO(), width=width)
    out.print(sheet)
    return out.file.getvalue().splitlines()  # type: ignore[attr-defined]


def sheet() -> Sheet:
    made = Sheet("method", ("kept", "first token", "why"), words=("why",), caption="a legend")
    made.group("one group")
    made.add(NAME, "12.5 %", "[red]1234.5 ms[/red] 2.18x", "far from one another")
    made.add("fastv:layer=2,keep=0.5", "50.0 %", "7 ms", "looked at")
    return made


@pytest.mark.parametrize("width", WIDTHS)
def test_figures_are_whole_and_lines_fit(width: int) -> None:
    lines = printed(sheet(), width)
    assert max(len(line.rstrip()) for line in lines) <= width
    for figure in ("12.5 %", "1234.5 ms 2.18x", "50.0 %", "7 ms"):
        assert sum(figure in line for line in lines) == 1
    for knob in ("keep=0.125", "weigh=nearest", "merge=mean", "keep=0.5"):
        assert any(knob in line for line in lines)
    assert not any("…" in line for line in lines)


def test_rows_are_stacked_where_a_grid_does_not_fit() -> None:
    assert not sheet().fits(40) and sheet().fits(80)
    narrow = printed(sheet(), 40)
    assert "  first token: 7 ms" in narrow and narrow.count("one group") == 1
    wide = printed(sheet(), 140)
    assert sum(line.startswith(NAME) for line in wide) == 1  # on one line, where there is room


def test_a_grid_uses_the_room_that_there_is() -> None:
    assert len(printed(sheet(), 140)) < len(printed(sheet(), 60))


def test_names_break_at_their_own_punctuation() -> None:
    assert "".join(broken(NAME, 20)) == NAME
    assert broken(NAME, 20) == ["divprune:keep=0.125,", "weigh=nearest,", "merge=mean"]
    assert broken(NAME, 100) == [NAME]


def test_a_row_of_another_number_of_cells_is_refused() -> None:
    with pytest.raises(ValueError, match="got 1 cells; expected 3"):
        sheet().add("x", "1")
