"""One self-contained HTML file of a `Report`: no network, no server, and no build step.

`templates/` holds the page, its style and its script, each as a person would write it. The numbers
go into the page as JSON. Rows of one byte per token are base64, and a step at which nothing left
repeats nothing, so that a page stays small.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict
from math import sqrt
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from ..files import write_text
from .report import Report, Run

_TEMPLATES = Path(__file__).parent / "templates"


def render(report: Report) -> str:
    """The page as text."""
    pages = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return pages.get_template("page.html.jinja").render(
        report=report,
        style=_part("page.css"),
        script=_part("page.js"),
        data=_json(payload(report)),
    )


def write(report: Report, path: Path) -> None:
    """Writes the page; OSError if it cannot."""
    write_text(path, render(report))


def payload(report: Report) -> dict[str, Any]:
    """What the script reads: the samples, with long rows in base64."""
    samples = []
    for sample in report.samples:
        runs = [_packed(run) for run in sample.runs]
        samples.append({**asdict(sample), "runs": runs})
    return {"samples": samples}


def _packed(run: Run) -> dict[str, Any]:
    """`reached`: one byte per token, or null where the step before had the same. `attention`: the
    step's largest share, and one byte per token with the square root of its part of it.
    """
    reached = [
        None if step and row == run.reached[step - 1] else _base64(row)
        for step, row in enumerate(run.reached)
    ]
    attention = []
    for row in run.attention:
        most = max(row)
        levels = [round(255 * sqrt(share / most)) if most else 0 for share in row]
        attention.append([most, _base64(levels)])
    kept = {"words": run.words, "shares": run.shares, "split": run.split}
    costs = {"flops": run.flops, "cache": run.cache, "unknown": run.unknown}
    return {"method": run.method, **kept, "reached": reached, "attention": attention, **costs}


def _base64(numbers: Sequence[int]) -> str:
    return base64.b64encode(bytes(numbers)).decode()


def _part(name: str) -> Markup:
    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))


def _json(body: Any) -> Markup:
    """JSON that no text in it can end early as a script element."""
    return Markup(json.dumps(body, separators=(",", ":")).replace("<", "\\u003c"))
