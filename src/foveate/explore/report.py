"""What an explorer page shows, as plain data: `html.render` turns a `Report` into one HTML file.

Everything is a frozen dataclass of numbers, texts and tuples, so ``dataclasses.asdict(report)`` is
JSON. A `Report` is filled in two ways: `foveate explore` records one `Sample`; `foveate demo`
records a few, and adds a `Table` of figures and `Hint`s about what to type next.

    recorded = [record.sample(loaded, [image], prompt, {"unpruned": [], spec: parse(spec)})]
    report = Report("Foveate demo", tuple(recorded), model="scenes", table=table, hints=hints)
    html.write(report, Path("demo.html"))

Letters in comments on shapes: S forwards of one answer (step 0 is the prefill), L decoder layers,
N visual tokens of the prompt in the order of the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Panel:
    """Visual tokens and the picture that they were made from.

    Attributes:
        title: what the panel shows, such as "Picture 1" or "Picture 1, overview".
        image: the picture as a data URI; empty if there is none to show.
        width: of the picture, in pixels.
        height: likewise.
        tokens: numbers of the visual tokens, counted from 0. With a grid they are in raster order.
        grid: (rows, columns) of the tokens over the picture; None where tokens have no place in it.
        note: why tokens have no place, or anything else a reader must know; may be empty.

    Raises:
        ValueError: the grid does not have one cell per token.
    """

    title: str
    image: str
    width: int
    height: int
    tokens: tuple[int, ...]
    grid: tuple[int, int] | None
    note: str = ""

    def __post_init__(self) -> None:
        if self.grid is not None and self.grid[0] * self.grid[1] != len(self.tokens):
            raise ValueError(
                f"panel {self.title!r} has {len(self.tokens)} tokens on a grid of {self.grid}; "
                "expected one token per cell"
            )


@dataclass(frozen=True)
class Run:
    """What one method did with one sample. The forward of step t produces word t.

    Attributes:
        method: the spec, such as "fastv:layer=2,keep=0.5"; "unpruned" for the model alone.
        answer: the whole answer, without special tokens.
        words: the answer's tokens as text, one per step (S), special tokens by their names.
        reached: for each step, how many layers attended to each visual token (S N). A token that
            is alive in layer l is alive in every layer before it, so one number says it all.
        shares: attention that the newest token pays to the image, per step and layer (S L), mean
            over heads.
        split: the same to system, image, instruction and response, per step (S 4), mean over
            layers and heads.
        attention: attention that the newest token pays to each visual token (S N), mean over
            layers and heads.
        flops: FLOPs of each step (S), the vision tower's in step 0. Empty if the cost of the model
            is not known; `unknown` says why.
        cache: bytes of the KV cache after each step (S); empty likewise.
        unknown: why there are no costs.
    """

    method: str
    answer: str
    words: tuple[str, ...]
    reached: tuple[tuple[int, ...], ...]
    shares: tuple[tuple[float, ...], ...]
    split: tuple[tuple[float, ...], ...]
    attention: tuple[tuple[float, ...], ...]
    flops: tuple[float, ...] = ()
    cache: tuple[float, ...] = ()
    unknown: str = ""

    def kept(self, step: int, layer: int) -> int:
        """Visual tokens that `layer` attended to at `step`, as the trace counts them."""
        return sum(reached > layer for reached in self.reached[step])

    def share_kept(self, step: int, layers: int) -> float:
        """Share of the visual tokens that a layer attended to at `step`, mean over `layers`."""
        return sum(self.reached[step]) / (layers * len(self.reached[step]))


@dataclass(frozen=True)
class Sample:
    """One prompt with its pictures, answered under each method.

    Attributes:
        title: short, such as the file's name; it labels the sample where there are several.
        prompt: the question.
        layers: depth of the decoder (L).
        panels: every visual token is in exactly one of them.
        runs: one per method, the unpruned model first if it is there.
        truth: what the pictures really show, if somebody knows; may be empty.
    """

    title: str
    prompt: str
    layers: int
    panels: tuple[Panel, ...]
    runs: tuple[Run, ...]
    truth: str = ""


@dataclass(frozen=True)
class Table:
    """A table of figures. The caller decides on the columns and formats the cells.

    Attributes:
        title: what the figures are, with the number of samples.
        columns: headings; the first is that of the row's name.
        rows: cells as text, one row per method.
        note: how the figures were measured; may be empty.

    Raises:
        ValueError: a row has another number of cells than there are columns.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r} has the row {row}; "
                    f"expected {len(self.columns)} cells: {self.columns}"
                )


@dataclass(frozen=True)
class Hint:
    """A command to type next, and what it does."""

    command: str
    purpose: str


@dataclass(frozen=True)
class Report:
    """All that a page shows.

    Attributes:
        title: heading of the page.
        samples: at least one.
        model: name of the model.
        lead: one or two sentences below the heading; may be empty.
        table: figures below the samples, or None.
        hints: what to type next; may be empty.

    Raises:
        ValueError: there is no sample.
    """

    title: str
    samples: tuple[Sample, ...]
    model: str
    lead: str = ""
    table: Table | None = None
    hints: tuple[Hint, ...] = ()

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError("a report needs at least one sample, but got none")
