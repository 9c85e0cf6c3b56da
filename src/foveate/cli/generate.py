"""`foveate generate`: answer about images, once as it is written, or side by side with the unpruned model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import Progress
from transformers import TextStreamer

from ..cost.flops import Cost
from ..models.load import load
from ..timing import comparison
from . import options, tables
from .asked import images_and_prompt, warn_of_length
from .output import console, errors, print_json, wrote


def generate(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE... PROMPT",
            help="Images (files, URLs, scene:N), then the prompt: text, - for standard input, or @FILE.",
        ),
    ],
    method: options.Methods = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Measure against the unpruned model, warmed up and in turn; several methods always are.",
        ),
    ] = False,
    prompt: Annotated[
        str | None,
        typer.Option(help="The prompt, word for word; all arguments are then images."),
    ] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(help="Read the prompt from this file; all arguments are then images."),
    ] = None,
    model: options.Model = "scenes",
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    repeats: Annotated[
        int, typer.Option(min=1, help="With a comparison: timed runs of each method.")
    ] = 3,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Write what a method kept, layer by layer and step by step, to this JSON file; "
            "those of further methods beside it, numbered."
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Answer a prompt about images. One method runs once and streams; several are compared."""
    paths, asked = images_and_prompt(inputs, prompt, prompt_file)
    specs = list(dict.fromkeys(method or []))
    if compare and not specs:
        raise ValueError("--compare compares methods with the unpruned model; name one by --method")
    table = comparison.rows_of(specs)
    options.writable(trace)
    pictures = [options.picture(path) for path in paths]
    loaded = load(model, device=device, dtype=dtype)
    encoded = loaded.inputs(pictures, asked)
    warn_of_length(loaded, pictures, paths, asked, max_new_tokens)
    told = {"model": model, "prompt": asked, "images": paths}
    if compare or len(specs) > 1:
        with Progress(console=errors, transient=True) as progress:
            task = progress.add_task("generating", total=(repeats + 1) * len(table))
            comparison.run(
                loaded, [encoded], table, max_new_tokens, repeats, lambda: progress.advance(task)
            )
        if as_json:
            print_json({**told, "rows": [comparison.as_dict(row, table[0]) for row in table]})
        else:
            _print_compared(table)
        _save(trace, table[1:])
        return
    row = table[-1]
    streamer = (
        None if as_json else _Printer(loaded.tokenizer, skip_prompt=True, skip_special_tokens=True)
    )
    unpruned = comparison.once(loaded, encoded, row, max_new_tokens, streamer, count_tower=as_json)
    if as_json:
        print_json({**told, "rows": [comparison.measured(row, unpruned)]})
    else:
        _print_facts(row, unpruned)
    _save(trace, [row])


class _Printer(TextStreamer):
    """Prints an answer as it is written: without the space before it, and without control characters."""

    begun = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called with the words that are certain."""
        plain = "".join(c for c in text if c.isprintable() or c in "\n\t")
        plain = plain if self.begun else plain.lstrip()
        self.begun = self.begun or bool(plain)
        print(plain, end="\n" if stream_end else "", flush=True)


def _print_compared(table: list[comparison.Contestant]) -> None:
    for row in table:
        console.print(f"[bold]{escape(row.spec)}[/bold]: {escape(row.answers[0])}", highlight=False)
    console.print(tables.compared(table))


def _print_facts(row: comparison.Contestant, unpruned: Cost) -> None:
    """What the one run kept and took; on standard error, so that the answer alone can be piped."""
    ratio = row.cost.ratio(unpruned)
    saved = ""
    if row.methods is not None:
        visual = int(row.traces[0].passes[0].total[0])
        saved = (
            f"kept {row.kept:.0%} of {visual} visual tokens (mean over layers): {ratio['prefill']:.2f}x the prefill "
            f"FLOPs and {ratio['kv_bytes']:.2f}x the KV cache of unpruned, computed. "
        )
    further = (
        "" if math.isnan(row.further[0]) else f", then {row.further[0] * 1e3:.1f} ms per token"
    )
    errors.print(
        f"[dim]{escape(row.spec)}: {saved}First token after {row.first[0] * 1e3:.0f} ms{further} (one cold run; "
        "--compare measures what a method gains).[/dim]",
        highlight=False,
    )


def _save(trace: Path | None, rows: list[comparison.Contestant]) -> None:
    """Writes the traces, where they are wanted: the first by the name given, others numbered."""
    if trace is None:
        return
    for number, row in enumerate(rows, 1):
        path = trace if number == 1 else trace.with_stem(f"{trace.stem}-{number}")
        row.traces[0].save(path)
        wrote(path, f"what {row.spec} kept")
