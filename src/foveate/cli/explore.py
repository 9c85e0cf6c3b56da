"""`foveate explore`: one HTML page that shows what methods keep of a picture, by layer and step."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress

from ..explore import html
from ..explore.record import UNPRUNED, sample
from ..explore.report import Hint, Report, Run, Sample, Table
from ..methods import parse
from ..models.load import load
from . import options
from .asked import images_and_prompt, warn_of_length
from .output import console, errors, print_json, wrote

_LEAD = "What a vision-language model keeps of a picture, layer by layer and word by word."


def explore(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE... PROMPT",
            help="One image or more (scene:N is held-out scene number N), then the prompt.",
        ),
    ],
    method: options.Methods = None,
    model: options.Model = "scenes",
    out: Annotated[
        Path, typer.Option(help="The page to write. It needs no network and no server.")
    ] = Path("explore.html"),
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
) -> None:
    """Write a page that shows the tokens kept over the picture, by layer and step, next to the unpruned model."""
    paths, prompt = images_and_prompt(inputs)
    options.check_page(out)
    specs = list(dict.fromkeys(method or [options.RECOMMENDED]))
    methods = {UNPRUNED: [], **{spec: parse(spec) for spec in specs}}
    pictures = [options.picture(path) for path in paths]
    loaded = load(model, device=device, dtype=dtype)
    warn_of_length(loaded, pictures, paths, prompt, max_new_tokens)
    with Progress(console=errors, transient=True) as progress:
        task = progress.add_task("answering", total=len(methods))
        seen = sample(
            loaded,
            pictures,
            prompt,
            methods,
            title=", ".join(Path(path).name for path in paths),
            max_new_tokens=max_new_tokens,
            tick=lambda: progress.advance(task),
        )
    report = Report(
        "Foveate explorer",
        (seen,),
        Path(model).name,
        _LEAD,
        figures(seen),
        _hints(paths, prompt, model, specs),
    )
    html.write(report, out)
    wrote(out, f"the page, {out.stat().st_size / 1000:.0f} kB; open it in a browser")
    if as_json:
        rows = [_as_dict(run, seen) for run in seen.runs]
        print_json({"model": model, "prompt": prompt, "page": str(out), "rows": rows})
        return
    for run in seen.runs:
        console.print(f"[bold]{run.method}[/bold]: {escape(run.answer)}", highlight=False)


def figures(seen: Sample) -> Table:
    """What each method kept and cost on this prompt; costs as parts of the first run's."""
    base = seen.runs[0]
    columns = ["Method", "Tokens kept in the prefill", "At the last step", "Same answer"]
    costs = bool(base.flops)
    if costs:
        columns += ["FLOPs", "KV cache at the end"]
    rows = []
    for run in seen.runs:
        row = [run.method]
        row += [f"{100 * share:.1f} %" for share in _kept(run, seen)]
        row.append("yes" if run.words == base.words else "no")
        if costs:
            row.append(f"{sum(run.flops) / sum(base.flops):.2f}")
            row.append(f"{run.cache[-1] / base.cache[-1]:.2f}")
        rows.append(tuple(row))
    note = (
        "Tokens kept are a mean over layers. FLOPs and KV cache are parts of the unpruned model's; "
        "they are computed from the trace, not timed. This is one prompt: foveate eval measures quality."
    )
    return Table("This prompt in figures", tuple(columns), tuple(rows), note)


def _kept(run: Run, seen: Sample) -> tuple[float, float]:
    """Share of the visual tokens in the prefill and at the last step."""
    return run.share_kept(0, seen.layers), run.share_kept(len(run.words) - 1, seen.layers)


def _as_dict(run: Run, seen: Sample) -> dict[str, Any]:
    prefill, last = _kept(run, seen)
    return {
        "method": run.method,
        "answer": run.answer,
        "steps": len(run.words),
        "kept": prefill,
        "kept_at_end": last,
        "flops": sum(run.flops) or None,
        "kv_bytes": run.cache[-1] if run.cache else None,
    }


def _hints(paths: list[str], prompt: str, model: str, specs: list[str]) -> tuple[Hint, ...]:
    """Commands that go on from this page, ready to be pasted into a shell."""
    chosen = ["--model", model, *(word for spec in specs for word in ("--method", spec))]
    return (
        Hint(
            shlex.join(["foveate", "generate", *paths, prompt, *chosen, "--compare"]),
            "Measure the time that the same prompt takes",
        ),
        Hint(
            shlex.join(["foveate", "eval", *chosen, "--data", "YOURS.jsonl"]),
            "Measure the quality on your own data",
        ),
        Hint("foveate methods", "See all methods and their knobs"),
    )
