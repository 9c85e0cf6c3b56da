"""The page that `foveate tune` writes: the choice, its certificate, everything tried, and ten examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from ..core.method import Method
from ..eval.intervals import weighted
from ..eval.tasks import Sample
from ..files import write_text
from ..inspect.kept import kept_sets
from ..inspect.places import places
from ..models.loaded import Loaded
from ..tune.setting.choose import Outcome
from ..tune.setting.halving import Candidate
from ..tune.setting.wish import Wish, percent
from .record import data_uri
from .report import Hint, Panel

_TEMPLATES = Path(__file__).parent / "templates"
_WIDTH, _HEIGHT = 720, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 16, 44
_LEAST = 1e-5  # nats: below that the plot tells nothing apart


@dataclass(frozen=True)
class Dot:
    """A candidate in the plot; pixels.

    Attributes:
        x: by cost.
        y: by divergence.
        low: of its interval's lower end; NaN without one.
        high: of the upper end.
        kind: "raced", "finalist" or "chosen".
        label: shown beside the pointer.
    """

    x: float
    y: float
    low: float
    high: float
    kind: str
    label: str


@dataclass(frozen=True)
class Shown:
    """One example on the page.

    Attributes:
        prompt: what was asked.
        panels: pictures, each with the layers that attended to each of its tokens (row by row).
        answers: (name, answer) each.
        same: whether all answers are the same.
    """

    prompt: str
    panels: tuple[tuple[Panel, tuple[tuple[float, float, float, float, float], ...]], ...]
    answers: tuple[tuple[str, str], ...]
    same: bool


def shown(
    loaded: Loaded, sample: Sample, setting: Sequence[Method], answers: Sequence[tuple[str, str]]
) -> Shown:
    """What a setting keeps of an example's pictures.

    Args:
        loaded: the model.
        sample: the example.
        setting: the methods.
        answers: (name, answer) each, the unpruned model's first.
    """
    pictures = sample.images()
    inputs = loaded.encode([(pictures, sample.prompt)], earlier=[sample.earlier])
    kept = kept_sets(loaded.model, inputs, 1, *setting)
    reached = kept.reached[0]
    panels = []
    for place in places(loaded, inputs, pictures, len(reached)):
        image = "" if place.picture is None else data_uri(place.picture)
        width, height = (0, 0) if place.picture is None else place.picture.size
        panel = Panel(place.title, image, width, height, place.tokens, place.grid, place.note)
        panels.append((panel, _cells(panel, reached, kept.layers)))
    texts = {answer for _, answer in answers}
    return Shown(sample.prompt, tuple(panels), tuple(answers), len(texts) == 1)


def _cells(
    panel: Panel, reached: np.ndarray, layers: int
) -> tuple[tuple[float, float, float, float, float], ...]:
    """(x, y, width, height, shade) of each token over the picture, in percent and in [0, 1]; the
    shade is the share of layers that do not attend to it.
    """
    if panel.grid is None:
        return ()
    rows, columns = panel.grid
    wide, high = 100 / columns, 100 / rows
    return tuple(
        (
            (place % columns) * wide,
            (place // columns) * high,
            wide,
            high,
            round(1 - float(reached[token]) / layers, 3),
        )
        for place, token in enumerate(panel.tokens)
    )


def dots(outcome: Outcome, wish: Wish) -> list[Dot]:
    """Everything that was tried, by cost and divergence."""
    raced = [one for one in outcome.candidates if one.seen]
    finalists = {one.spec for one in outcome.finalists}
    chosen = outcome.chosen.spec if outcome.chosen else ""
    scale = Scale.of(raced)
    found = []
    for one in raced:
        values = np.array([seen.kl for seen in one.seen])
        interval = weighted(values, np.ones(len(values)), wish.seed)
        kind = "chosen" if one.spec == chosen else "finalist" if one.spec in finalists else "raced"
        label = (
            f"{one.spec}: {one.cost:.2f} of the cost, divergence {one.kl:.2g} nats on "
            f"{len(one.seen)} examples, {percent(float(np.mean(one.words)))} of words differ"
        )
        found.append(
            Dot(
                scale.x(one.cost),
                scale.y(one.kl),
                scale.y(interval.low),
                scale.y(interval.high),
                kind,
                label,
            )
        )
    order = ("raced", "finalist", "chosen")
    return sorted(found, key=lambda dot: order.index(dot.kind))


@dataclass(frozen=True)
class Scale:
    """The plot's axes: cost from 0 to 1, divergence by its logarithm.

    Attributes:
        least: divergence at the lower edge, as a power of ten.
        most: at the upper edge.
    """

    least: int
    most: int

    @staticmethod
    def of(raced: Sequence[Candidate]) -> Scale:
        """That shows all of these."""
        values = [max(one.kl, _LEAST) for one in raced] or [1.0]
        return Scale(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9))

    def x(self, cost: float) -> float:
        """Pixels of a cost."""
        return round(_LEFT + min(max(cost, 0.0), 1.0) * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, kl: float) -> float:
        """Pixels of a divergence; NaN of NaN."""
        if math.isnan(kl):
            return math.nan
        part = (math.log10(max(kl, _LEAST)) - self.least) / max(self.most - self.least, 1)
        return round(_HEIGHT - _BOTTOM - min(max(part, 0.0), 1.0) * (_HEIGHT - _TOP - _BOTTOM), 1)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Powers of ten."""
        return [
            (self.y(10.0**power), f"{10.0**power:g}") for power in range(self.least, self.most + 1)
        ]


def render(outcome: Outcome, wish: Wish, examples: Sequence[Shown], hints: Sequence[Hint]) -> str:
    """The page as text; self-contained, without a script."""
    pages = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    raced = [one for one in outcome.candidates if one.seen]
    scale = Scale.of(raced)
    return pages.get_template("tuned.html.jinja").render(
        file=outcome.file,
        certificate=outcome.file.certificate,
        finalists=_rows(outcome, wish),
        refused=sorted({(one.spec, one.refused) for one in outcome.candidates if one.refused}),
        dots=dots(outcome, wish),
        scale=scale,
        across=[(scale.x(part / 10), f"{part / 10:g}") for part in range(0, 11, 2)],
        edges={"left": _LEFT, "right": _WIDTH - _RIGHT, "top": _TOP, "bottom": _HEIGHT - _BOTTOM},
        size=(_WIDTH, _HEIGHT),
        raced=len(raced),
        examples=examples,
        hints=hints,
        style=Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8")),
    )


def _rows(outcome: Outcome, wish: Wish) -> list[dict[str, Any]]:
    """The finalists' table."""
    rows = []
    for one in outcome.finalists:
        verdict = one.verdict
        tested = "not tested"
        if verdict is not None:
            word = "holds" if verdict.holds else "fails"
            tested = f"{percent(verdict.loss)}, at most {percent(verdict.upper)}: {word}"
        rows.append(
            {
                "method": one.label,
                "cost": f"{one.cost:.3f}",
                "loss": percent(one.loss),
                "tested": tested,
                "faster": "" if one.faster is None else f"{one.faster:.2f}x",
                "chosen": one is outcome.chosen,
            }
        )
    return rows


def write(page: str, path: Path) -> None:
    """Writes the page; OSError if it cannot."""
    write_text(path, page)
