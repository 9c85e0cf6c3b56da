"""Puts the commands together, and turns every user's mistake into one clear line and exit code 2."""

from __future__ import annotations

import sys
from typing import Any

import torch
import typer
from rich.markup import escape
from transformers.utils import logging
from typer.core import TyperGroup

from .. import __version__
from . import (
    advise,
    bench,
    cost,
    demo,
    doctor,
    eval,
    explore,
    export,
    generate,
    inspect,
    inspect_ranking,
    methods,
    plot,
    plot_pareto,
    plot_schedule,
    search,
    serve,
    train,
    tune,
)
from .asked import DashedPrompt
from .output import errors

# typer's releases carry click inside or depend on it; its errors are the bases of typer's own
_CommandError: Any = typer.BadParameter.__mro__[2]

PANELS = USE, MEASURE, TUNE, LOOK, DEVELOP = ("Use", "Measure", "Tune", "Look", "Develop")


class Panelled(TyperGroup):
    """Commands in the order of their panels: typer alone lists commands first, then groups."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names, in the order in which help shows them."""
        panels: dict[str, Any] = {
            name: getattr(one, "rich_help_panel", None) for name, one in self.commands.items()
        }
        return sorted(panels, key=lambda name: PANELS.index(panels[name]))


app = typer.Typer(
    name="foveate",
    cls=Panelled,
    help="Faster vision-language models: keep only the visual tokens that matter.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
inspect.app.command("ranking")(inspect_ranking.ranking)
plot.app.command("schedule")(plot_schedule.schedule)
plot.app.command("pareto")(plot_pareto.pareto)

app.command("demo", rich_help_panel=USE)(demo.demo)
app.command("generate", rich_help_panel=USE, cls=DashedPrompt)(generate.generate)
app.command("methods", rich_help_panel=USE)(methods.list_methods)
app.command("cost", rich_help_panel=MEASURE)(cost.cost)
app.command(
    "serve",
    rich_help_panel=USE,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(serve.serve)
app.command("export", rich_help_panel=USE)(export.export_model)
app.command("advise", rich_help_panel=MEASURE)(advise.advise)
app.command("bench", rich_help_panel=MEASURE)(bench.benchmark)
app.command("eval", rich_help_panel=MEASURE)(eval.evaluate_methods)
app.command("tune", rich_help_panel=TUNE)(tune.tune)
app.command("search", rich_help_panel=TUNE)(search.search)
app.add_typer(train.app, name="train", rich_help_panel=TUNE)
app.command("explore", rich_help_panel=LOOK, cls=DashedPrompt)(explore.explore)
app.add_typer(inspect.app, name="inspect", rich_help_panel=LOOK)
app.add_typer(plot.app, name="plot", rich_help_panel=LOOK)
app.command("doctor", rich_help_panel=DEVELOP)(doctor.doctor)


def _version(value: bool | None) -> None:
    if value:
        print(f"foveate {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: bool | None = typer.Option(
        None, "--version", help="Print the version.", callback=_version, is_eager=True
    ),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
) -> None:
    """Faster vision-language models: keep only the visual tokens that matter."""


def main(argv: list[str] | None = None) -> None:
    """Runs the command line; exits with 0, 2 for a user's mistake, 130 when interrupted."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: list[str], commands: Any = app) -> int:
    """As `main`, but returns the exit code: 1 for what should not have happened.

    Args:
        argv: what was typed.
        commands: a typer application; the laboratory has one of its own.
    """
    logging.disable_progress_bar()  # ours is enough, and --json must print nothing else
    logging.set_verbosity_error()
    try:
        return _run(argv, commands)
    except Exception as error:
        if "--debug" in argv:
            raise
        _refuse(
            f"{type(error).__name__}: {error} (this is a bug in foveate or below it; --debug shows where)"
        )
        return 1


def _run(argv: list[str], commands: Any) -> int:
    """As `run`, for the errors that are a user's."""
    try:
        result: Any = commands(argv, prog_name=commands.info.name, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except typer.Abort:
        return 130
    except _CommandError as error:
        message = error.format_message()
        return _refuse(message) if message else 2
    except KeyboardInterrupt:
        errors.print("interrupted")
        return 130
    except (MemoryError, torch.OutOfMemoryError) as error:
        return _refuse(
            f"out of memory: {error}. Use a smaller model, fewer images, or --dtype bfloat16"
        )
    except (ValueError, OSError, FloatingPointError) as error:
        return _refuse(str(error))
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        return _refuse(str(error))


def _refuse(message: str) -> int:
    line = " ".join(message.split())
    errors.print("[red]error:[/red]", escape(line), highlight=False, soft_wrap=True)
    return 2
