"""`foveate methods`: what there is, from the code itself."""

from __future__ import annotations

import inspect
import re
from typing import Annotated, Any

import typer
from rich.table import Table

from ..methods import factories, knobs
from .output import console, print_json


def describe(name: str) -> dict[str, Any]:
    """A method's summary, paper, deviations and knobs, read off its factory's docstring and signature."""
    doc = inspect.getdoc(factories()[name]) or ""
    parts = [" ".join(p.split()) for p in doc.split("\n\n")]

    def part(key: str) -> str:
        return next(
            (p.removeprefix(f"{key}:").strip() for p in parts if p.startswith(f"{key}:")), ""
        )

    told = dict(re.findall(r"(\w+): (.*?)(?=\s\w+: |$)", part("Args")))
    listed = {
        k: {
            "default": "(needed)" if default is inspect.Parameter.empty else default,
            "meaning": told.get(k, ""),
        }
        for k, (_, default) in knobs(name).items()
    }
    return {
        "name": name,
        "summary": parts[0],
        "paper": part("Paper"),
        "deviations": part("Deviations"),
        "knobs": listed,
    }


def list_methods(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the methods with their knobs, papers and deviations."""
    found = [describe(name) for name in factories()]
    if as_json:
        print_json(found)
        return
    table = Table(show_lines=True)
    for column in ("method", "what it does", "knobs (default)", "deviations from the paper"):
        table.add_column(column, overflow="fold")
    for m in found:
        lines = [f"{k} = {v['default']}" for k, v in m["knobs"].items()]
        table.add_row(
            m["name"], f"{m['summary']}\n[dim]{m['paper']}[/dim]", "\n".join(lines), m["deviations"]
        )
    console.print(table)
