"""Peers side by side: each in an environment of its own, in turn with plain transformers there, so that ratios compare.

A peer is a script in this folder that reads a request as JSON and prints what it found as JSON (see common.py). What
cannot be installed or run is kept in the result with the reason.
"""

from __future__ import annotations

import json
import platform
import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from common import Asked
from rich.console import Console
from rich.table import Table

import foveate
from foveate.cost.configurations import SHAPES, config_of
from foveate.cost.plan import request
from foveate.models.load import check_device

HERE = Path(__file__).parent
BASE = "plain"
console = Console()


@dataclass(frozen=True)
class Peer:
    """A script, and what its own environment must hold; None: this interpreter's."""

    script: str
    packages: tuple[str, ...] | None = None


PEERS = {
    "foveate": Peer("with_foveate.py"),
    "eager": Peer("eager_fastv.py"),
    "kvpress": Peer("with_kvpress.py", ("kvpress==0.5.5", "pillow")),
    "sparsevlm": Peer(
        "with_sparsevlm.py",
        ("sparsevlm==0.1.3", "pillow", f"transformers=={transformers.__version__}"),
    ),
}


class NotRunError(Exception):
    """Why a peer could not be run."""


def interpreter(name: str, peer: Peer, folder: Path) -> str:
    """The peer's Python; its environment is made in `folder` if it is not there, with this one's torch.

    Raises:
        NotRunError: something cannot be installed.
    """
    if peer.packages is None:
        return sys.executable
    home = folder / name.replace(" ", "-")
    wanted = [f"torch=={torch.__version__.partition('+')[0]}", *peer.packages]
    mark = home / "packages.json"
    if not mark.is_file() or json.loads(mark.read_text()) != wanted:
        shutil.rmtree(home, ignore_errors=True)
        console.print(f"making an environment for {name}: {', '.join(wanted)}")
        _call([sys.executable, "-m", "venv", str(home)])
        pip = [
            str(home / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ]
        _call([*pip, wanted[0]])
        _call([*pip, *wanted])
        mark.write_text(json.dumps(wanted))
    return str(home / "bin" / "python")


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotRunError(f"not installed: {_last(done.stderr)}")


def _last(text: str) -> str:
    """The last line that says something; pip's own advice follows its error."""
    lines = [
        line.strip()
        for line in text.splitlines()
        if line.strip() and not line.startswith("[notice]")
    ]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["it says nothing"])[-1]


def drive(python: str, script: Path, asked: Asked, limit: float) -> dict[str, Any]:
    """Runs a script on a request.

    Raises:
        NotRunError: it fails, takes longer than `limit` seconds, or does not answer in JSON.
    """
    try:
        done = subprocess.run(
            [python, str(script)], input=json.dumps(asdict(asked)), capture_output=True, text=True, check=False,
            timeout=limit,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NotRunError(f"took longer than {limit:.0f} s") from None
    except OSError as error:
        raise NotRunError(f"not started: {error}") from None
    if done.returncode:
        raise NotRunError(_last(done.stderr))
    try:
        body = json.loads(done.stdout.splitlines()[-1])
        return {"versions": body["versions"], "found": summary(body["runs"], asked)}
    except (IndexError, KeyError, TypeError, json.JSONDecodeError):
        raise NotRunError(f"answered no result: {done.stdout[-100:]!r}") from None


def summary(runs: dict[str, Any], asked: Asked) -> dict[str, Any]:
    """Medians; times faster than plain, turn by turn; entries left in each layer after the prefill; peak memory."""
    found: dict[str, Any] = {}
    plain = runs[BASE]
    for name, run in runs.items():
        if "failed" in run or "failed" in plain:
            found[name] = {
                "failed": run.get("failed") or f"plain transformers failed: {plain['failed']}"
            }
            continue
        ratio = {
            part: _faster(plain[part], run[part])
            for part in ("first", "further")
            if asked.new_tokens > 1
        }
        ratio["total"] = _faster(_total(plain, asked), _total(run, asked))
        found[name] = {
            **{part: statistics.median(run[part]) for part in ("first", "further")},
            "ratio": ratio,
            "peak": run["peak"],
            "held": run["held"],
            "same answer": run["ids"] == plain["ids"],
        }
    return found


def _total(run: dict[str, Any], asked: Asked) -> list[float]:
    return [
        a + b * (asked.new_tokens - 1) for a, b in zip(run["first"], run["further"], strict=True)
    ]


def _faster(theirs: list[float], ours: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def show(name: str, body: dict[str, Any]) -> None:
    """Prints one peer's table, or why there is none."""
    if "failed" in body:
        console.print(f"{name} could not be run: {body['failed']}", markup=False)
        return
    told = ", ".join(f"{key} {value}" for key, value in body["versions"].items())
    table = Table(title=f"{name} ({told})")
    for column in ("", "first token", "x", "per token", "x", "all x", "peak MB", "KV a layer"):
        table.add_column(column, justify="right" if column else "left")
    for contestant, one in body["found"].items():
        if "failed" in one:
            table.add_row(contestant, f"failed: {one['failed']}")
            continue
        times = [f"{one[part] * 1e3:.1f} ms" for part in ("first", "further")]
        ratio = [
            f"{one['ratio'].get(part, float('nan')):.2f}" for part in ("first", "further", "total")
        ]
        peak = "-" if one["peak"] is None else f"{one['peak'] / 2**20:.0f}"
        held = f"{statistics.fmean(one['held']):.0f}"
        table.add_row(contestant, times[0], ratio[0], times[1], ratio[1], ratio[2], peak, held)
    console.print(table)


def main(
    shape: Annotated[
        str, typer.Option(help=f"A LLaVA-1.5 of {', '.join(SHAPES)}, or a config.json.")
    ] = "smol-135m",
    layers: Annotated[
        int | None, typer.Option(min=3, help="Depth of the decoder, if another.")
    ] = None,
    keep: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="Share of the visual tokens left.")
    ] = 0.5,
    layer: Annotated[int, typer.Option(min=1, help="FastV's layer.")] = 2,
    prompt_tokens: Annotated[int, typer.Option(min=8, help="Text of the prompt.")] = 64,
    output_tokens: Annotated[int, typer.Option(min=2, help="Tokens generated.")] = 16,
    batch: Annotated[int, typer.Option(min=1, help="Samples at once.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Timed turns.")] = 5,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    only: Annotated[list[str] | None, typer.Option(help=f"Some of {', '.join(PEERS)}.")] = None,
    environments: Annotated[Path, typer.Option(help="Where peers' environments are.")] = Path(
        ".venv-peers"
    ),
    limit: Annotated[float, typer.Option(min=1, help="Seconds that one peer may take.")] = 3600,
    save: Annotated[Path | None, typer.Option(help="Write the result as JSON.")] = None,
) -> None:
    """Times peers and Foveate on a random-weight shape at equal kept tokens, each beside plain transformers."""
    config = config_of(shape, layers)
    if config.model_type != "llava":
        raise typer.BadParameter(
            f"{shape} is a {config.model_type}; the peers' scripts build LLaVA-1.5 prompts"
        )
    unknown = [name for name in only or [] if name not in PEERS]
    if unknown:
        raise typer.BadParameter(
            f"there is no peer {unknown[0]!r}; expected some of {', '.join(PEERS)}"
        )
    check_device(device)
    visual = request(config, text=prompt_tokens, images=1, new_tokens=output_tokens).visual
    asked = Asked(
        config.to_dict(), prompt_tokens, visual, keep, layer, output_tokens, batch, repeats, torch.get_num_threads(),
        device, dtype,
    )  # fmt: skip
    body = _told(shape, asked) | {"peers": {}}
    for name, peer in PEERS.items():
        if only and name not in only:
            continue
        try:
            found = drive(interpreter(name, peer, environments), HERE / peer.script, asked, limit)
        except NotRunError as why:
            found = {"failed": str(why)}
        body["peers"][name] = found
        show(name, found)
        if save is not None:
            save.write_text(json.dumps(body, indent=1) + "\n")


def _told(shape: str, asked: Asked) -> dict[str, Any]:
    """What was asked, and of which machine."""
    cuda = asked.device.startswith("cuda")
    return {
        "shape": shape,
        "layers": asked.config["text_config"]["num_hidden_layers"],
        "request": {k: v for k, v in asdict(asked).items() if k not in ("config", "device")}
        | {"kept": asked.kept},
        "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU",
        "capability": "" if cuda else torch.backends.cpu.get_cpu_capability(),
        "versions": {"foveate": foveate.__version__, "python": platform.python_version()},
    }


if __name__ == "__main__":
    typer.run(main)
