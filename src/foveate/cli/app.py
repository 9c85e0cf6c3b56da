"""Puts the commands together, and turns every user's mistake into one clear line and exit code 2."""

from __future__ import annotations

import sys
from typing import Any

import click
import torch
import typer

from .. import __version__
from . import demo, evaluate, generate, methods, train
from .output import errors

app = typer.Typer(
    name="foveate",
    help="Faster vision-language models: keep only the visual tokens that matter.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("generate")(generate.generate)
app.command("methods")(methods.list_methods)
app.add_typer(demo.app, name="demo")
demo.app.command("train")(train.train_model)
demo.app.command("evaluate")(evaluate.evaluate_model)


def _version(value: bool) -> None:
    if value:
        print(f"foveate {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_version, is_eager=True),
) -> None:
    """Faster vision-language models: keep only the visual tokens that matter."""


def main(argv: list[str] | None = None) -> None:
    """Runs the command line; exits with 0, 2 for a user's mistake, 130 when interrupted."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: list[str]) -> int:
    """As `main`, but returns the exit code."""
    try:
        result: Any = app(argv, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Abort:
        return 130
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return 2
    except click.ClickException as error:
        errors.print(f"[red]error:[/red] {error.format_message()}", highlight=False)
        return 2
    except KeyboardInterrupt:
        errors.print("interrupted")
        return 130
    except (MemoryError, torch.OutOfMemoryError) as error:
        return _refuse(f"out of memory: {error}. Use a smaller model, fewer images, or --dtype bfloat16")
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        return _refuse(str(error))
    except RuntimeError as error:
        if "memory" not in str(error) and "CUDA" not in str(error) and "device" not in str(error):
            raise
        return _refuse(str(error))


def _refuse(message: str) -> int:
    line = " ".join(message.split())
    errors.print(f"[red]error:[/red] {line}", highlight=False, markup=True, soft_wrap=True)
    return 2
