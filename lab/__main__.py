"""`python -m lab`: how the bundled models are trained, and what smol kept of its language."""

from __future__ import annotations

import sys

import typer

from foveate.cli.app import run
from lab.commands import language, train

app = typer.Typer(
    name="lab", help="How the bundled models were made.", no_args_is_help=True, add_completion=False
)
app.command("train")(train.train_model)
app.command("language")(language.language)

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], app))
