"""Tables for terminals of any width: a grid where it fits, else one block of lines per row."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

_GAPS = (2, 1)  # blank columns between two columns of a grid; fewer where room is short
_PIECES = re.compile(r"[^,:+/ ]*[,:+/ ]*")  # a method's text may end a line after one of these


def broken(spec: str, width: int) -> list[str]:
    """A method's text in lines of at most `width`, which end at its own punctuation.

    No knob and no number is torn apart, unless it alone is longer than a line.
    """
    lines = [""]
    for piece in filter(None, _PIECES.findall(spec)):
        if lines[-1] and cell_len(lines[-1]) + cell_len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def _longest_piece(spec: str) -> int:
    return max((cell_len(piece.rstrip()) for piece in _PIECES.findall(spec)), default=0)


def _width(text: Text) -> int:
    return max((cell_len(line) for line in text.plain.split("\n")), default=0)


def _longest_word(text: Text) -> int:
    return max((cell_len(word) for word in text.plain.split()), default=0)


@dataclass
class Sheet:
    """Rows of a name and its cells.

    Printed on a console it is a grid, if the console is wide enough for every figure. If not, each
    row becomes a block: its name, then a line per cell.

    Attributes:
        first: title of the names' column.
        columns: titles of the cells.
        words: those titles whose cells are prose, which may wrap and are aligned left.
        title: printed above, as plain text.
        caption: printed below, with rich's markup.
    """

    first: str
    columns: tuple[str, ...]
    words: tuple[str, ...] = ()
    title: str = ""
    caption: str = ""
    _rows: list[tuple[str, list[Text]]] = field(default_factory=list)
    _groups: dict[int, str] = field(default_factory=dict)

    def add(self, name: str, *cells: str) -> None:
        """Adds a row.

        Args:
            name: plain text, such as a method.
            cells: with rich's markup, one for each of `columns`.

        Raises:
            ValueError: their number is another one.
        """
        if len(cells) != len(self.columns):
            raise ValueError(f"got {len(cells)} cells; expected {len(self.columns)}")
        self._rows.append((name, [Text.from_markup(cell) for cell in cells]))

    def group(self, title: str) -> None:
        """Begins a group of rows under a title of its own."""
        self._groups[len(self._rows)] = title

    def fits(self, width: int) -> bool:
        """Whether the grid fits so many columns."""
        return self._layout(width) is not None

    def _layout(self, available: int) -> tuple[int, list[int]] | None:
        """The gap between columns, and the width of each, names first; None if the grid does not fit."""
        for gap in _GAPS:
            widths = self._widths(available - gap * len(self.columns))
            if widths is not None:
                return gap, widths
        return None

    def _widths(self, available: int) -> list[int] | None:
        """The width of every column, of so many for all together; None if figures would be lost."""
        least = [
            max([_longest_piece(self.first), *(_longest_piece(name) for name, _ in self._rows)])
        ]
        most = [max([cell_len(self.first), *(cell_len(name) for name, _ in self._rows)])]
        for index, title in enumerate(self.columns):
            cells = [row[index] for _, row in self._rows]
            figures = max(map(_width, cells), default=0)
            prose = title in self.words
            narrow = max(map(_longest_word, cells), default=0) if prose else figures
            least.append(max(narrow, _longest_piece(title)))
            most.append(max(figures, cell_len(title)))
        spare = available - sum(least)
        if spare < 0:
            return None
        found = []
        for low, high in zip(least, most, strict=True):
            more = min(spare, high - low)
            found.append(low + more)
            spare -= more
        return found

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.title:
            yield Text(self.title, style="italic")
        layout = self._layout(options.max_width)
        yield from self._blocks(options.max_width) if layout is None else self._grids(*layout)
        if self.caption:
            yield Text.from_markup(self.caption, style="dim")

    def _grids(self, gap: int, widths: list[int]) -> Iterator[Table | Text]:
        """The head, then the rows; a grid for every group, all of the same widths."""
        titles = (self.first, *self.columns)
        grid = self._empty(gap, widths)
        if any(titles):
            lines = [broken(title, width) for title, width in zip(titles, widths, strict=True)]
            grid.add_row(*(Text("\n".join(some), style="bold") for some in lines))
            grid.add_row(*(Text("─" * width, style="dim") for width in widths))
        for number, (name, cells) in enumerate(self._rows):
            if number in self._groups:
                yield grid
                yield Text(self._groups[number], style="bold italic")
                grid = self._empty(gap, widths)
            grid.add_row(Text("\n".join(broken(name, widths[0]))), *cells)
        yield grid

    def _empty(self, gap: int, widths: list[int]) -> Table:
        grid = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, show_header=False)
        for title, width in zip((None, *self.columns), widths, strict=True):
            left = title is None or title in self.words
            grid.add_column(width=width, justify="left" if left else "right", overflow="fold")
        return grid

    def _blocks(self, width: int) -> Iterator[Text]:
        """A row below the other: no figure is lost, however narrow the terminal is."""
        for number, (name, cells) in enumerate(self._rows):
            if number in self._groups:
                yield Text(self._groups[number], style="bold italic")
            yield Text("\n".join(broken(name, width)), style="bold", overflow="fold")
            for title, cell in zip(self.columns, cells, strict=True):
                if cell.plain.strip():
                    label = Text(f"  {title}: " if title else "  ")
                    yield label + Text(" ").join(cell.split("\n"))
