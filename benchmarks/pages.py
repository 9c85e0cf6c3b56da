"""Writes docs/peers.md, docs/gpu.md and docs/serving-speed.md from docs/results/.

Where a file is not there, the page says that nothing is measured.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foveate.eval.intervals import weighted
from foveate.timing.race import SLACK

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
PEERS, GPU = ROOT / "docs" / "peers.md", ROOT / "docs" / "gpu.md"
SERVING = ROOT / "docs" / "serving-speed.md"
SERVED = ("serving", "serving-tiny-20m")  # files of benchmarks/serving.py, one for each shape

PEERS_INTRODUCTION = """# Peers, side by side

`make results-peers` times the projects that still install, on random weights of one shape, at equal kept tokens.
Each peer runs in an environment of its own. It takes turns with plain transformers (sdpa, KV cache) *of that
environment*, in rotating order.

| column | meaning |
|---|---|
| x | plain's time over its own, the median of the turns' ratios; so rows of different environments compare |
| plain again | the noise |
| peak | memory that a generation held beyond the model |
| KV a layer | tokens of the prompt left in a layer's cache, on average; it shows whether tokens were really dropped |

Weights are random, so this is about speed only. `python benchmarks/pages.py` renders this page.
"""
PEERS_READING = """
## How each is run

- **Foveate**: `apply(model, fastv(...))` around `generate`.
- **Eager FastV** (`benchmarks/peers/eager_fastv.py`) is FastV as one writes it by hand on transformers. Attention
  weights exist only under eager, so the model runs in it. Hidden states are cut after the layer before. "a hook"
  takes the weights of the one layer that ranks, the best that this way can do. "output_attentions" requests them
  as is common, and transformers then keeps those of all layers and steps. A test compares its answer with
  Foveate's FastV: they are equal.
- **kvpress** (NVIDIA, from PyPI): a press forgets keys and values *after* each layer's prefill attention. The
  prefill computes all that it did before, plus the scoring. By design its time to first token cannot be shorter
  than plain's. It saves memory and decoding time. Its ratio counts text too, and holds from the first layer on.
  It is set so that as many entries are left in a layer as FastV leaves after its cut. It requires transformers
  below 5.3, and warns that LLaVA is not among the models it was tested with.
- **sparsevlm** (from PyPI; not by SparseVLM's authors) takes Qwen2-VL and Qwen2.5-VL, one sample, one picture in
  front of the prompt. It gets the shape's decoder inside a Qwen2.5-VL. Its `sparsevlm_generate` runs a whole
  prefill under eager with `output_attentions`, cuts the cache once, and feeds the last word again. Its
  `apply_sparsevlm` hooks decide for themselves how many stay; the request's count is the least.

## What is not run, and why

- **FastV, VTW, PyramidDrop, SparseVLMs** as their authors published them are edited copies of transformers 4.31
  to 4.37 and of LLaVA's own code, with constants of one prompt template. They build from LLaVA's checkpoints, not
  from a configuration, and need Pythons and libraries of their time. There is no `--clone PATH`: such a clone
  would have to be edited to run on random weights, and its figures would then not be its authors'.
- **visionzip** on PyPI (0.1.3) installs its metadata and no code.
- **vLLM, SGLang, TensorRT-LLM, OpenVINO** prune inside an engine of their own. That is another baseline and another
  question.
"""
GPU_INTRODUCTION = """# On a GPU

`make gpu-bench` measures LLaVA-1.5-7B, 13B, LLaVA-NeXT-7B and Qwen2.5-VL-7B shapes with random weights at batch 1,
8 and 32. It compares plain transformers, FastV, DivPrune, VisionZip, DyRate and a schedule. Plain and FastV also run
with a static cache and a compiled decode step, the strongest baseline. Each ratio is to plain of the same kind, and
stands next to the cap that no device can pass.

It needs a CUDA device, torch, transformers, typer, rich and jaxtyping, and no weights. It ends by itself within five
minutes (`--minutes`), with the most important rows first, and prints this page. The same command continues where it
stopped. It skips batches that do not fit. `make gpu-check` first checks that pruning is right on the device. Commit
`docs/results/gpu.json` and this page with it. DyRate's predictor is random around a rate of one half, and the
schedule's values are an example (`benchmarks/gpu.py`). So this measures what they cost, not what they do to
answers.
"""

SERVING_INTRODUCTION = """# Speed inside vLLM

`make results-serving` compares plain vLLM with the plugin, in one process each, in turn and in rotating order. Plain
vLLM has the same flags as Foveate requires (no graphs, chunks or prefix caching). "plain again" is the noise. "plugin
loaded" has the plugin installed and not asked for. "none" has it asked for, and every token kept. "vLLM's defaults"
compiles the decoder and has chunked prefill; its pictures never come twice. So does the method that goes the way
"before" the decoder, which is compared with those defaults. All others are compared with plain.

| column | meaning |
|---|---|
| load | requests that arrive together x tokens of each answer |
| first token, per token | of plain vLLM in milliseconds; of others, how many times faster they are |
| answers | the same of the time until the last token of all |
| processor | the same of the processor time of all that; waiting for other processes is not in it |
| of the cap | the share of the cap of "answers" that "processor" reaches |

Times faster are plain's time in all turns over the contestant's, with a 95 % bootstrap interval over turns. After "of"
stands the cap: the ratio of computed FLOPs, and per token the larger of those of FLOPs and bytes.

Pictures are processed before the clock starts. Weights are random, so this is about speed only.
"""


def read(name: str) -> dict[str, Any] | None:
    """A result file, if it is there."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def peers(body: dict[str, Any] | None) -> str:
    """The page of peers."""
    if body is None:
        return f"{PEERS_INTRODUCTION}\n**Not yet measured.**\n{PEERS_READING}"
    asked = body["request"]
    where = f"{body['device']}{', ' + body['capability'] if body['capability'] else ''}"
    setting = (
        f"The shape is `{body['shape']}` ({body['layers']} layers). A request is batch {asked['batch']} of "
        f"{asked['text']} text and {asked['visual']} visual tokens, of which {asked['kept']} are left "
        f"(FastV: from layer {asked['layer']} on). {asked['new_tokens']} tokens are generated. The device is "
        f"{where}, with {asked['threads']} threads and {asked['dtype']}; there were {asked['repeats']} turns."
    )
    lines = [
        "| | first token | x | per token | x | whole answer x | peak | KV a layer |",
        "|---" + "|---:" * 7 + "|",
    ]
    notes = []
    for name, peer in body["peers"].items():
        if "failed" in peer:
            notes.append(f"- **{name} could not be run**: {peer['failed']}")
            continue
        told = ", ".join(f"{key} {value}" for key, value in peer["versions"].items())
        lines.append(f"| *{told}* | | | | | | | |")
        for contestant, one in peer["found"].items():
            if "failed" in one:
                notes.append(f"- **{contestant} could not be run**: {one['failed']}")
            else:
                lines.append(f"| {contestant} | {' | '.join(_cells(one))} |")
                whole = asked["text"] + asked["visual"]
                if not contestant.startswith("plain") and min(one["held"]) == whole:
                    notes.append(
                        f"- **{contestant} dropped nothing**: every layer holds all {whole} entries."
                    )
    return "\n".join([PEERS_INTRODUCTION, setting, "", *lines, "", *notes, PEERS_READING])


def _cells(one: dict[str, Any]) -> list[str]:
    ratio = one["ratio"]
    peak = "" if one["peak"] is None else f"{one['peak'] / 2**20:.0f} MB"
    times = [
        cell
        for part in ("first", "further")
        for cell in (f"{one[part] * 1e3:.1f} ms", f"{ratio[part]:.2f}")
    ]
    return [*times, f"{ratio['total']:.2f}", peak, f"{statistics.fmean(one['held']):.0f}"]


def gpu(body: dict[str, Any] | None) -> str:
    """The page of GPU rows."""
    if body is None:
        return f"{GPU_INTRODUCTION}\n**Not yet measured**: nobody has run it on a GPU so far.\n"
    setting = body["setting"]
    lines = [
        f"Device: **{body['device']}**, {setting['dtype']}, {setting['attention']}; {setting['text']} text tokens, "
        f"{setting['new_tokens']} new, {setting['repeats']} turns; "
        f"{', '.join(f'{key} {value}' for key, value in body['versions'].items())}.",
    ]
    for shape in dict.fromkeys(row["shape"] for row in body["rows"]):
        rows = [row for row in body["rows"] if row["shape"] == shape]
        lines += ["", f"## {shape}, {rows[0]['visual']} visual tokens", ""]
        lines += [
            "| batch | | first token | x (cap) | per token | x (cap) | tokens/s | whole answer x | peak |"
        ]
        lines += ["|---:|---" + "|---:" * 7 + "|"]
        for row in sorted(rows, key=lambda row: row["batch"]):
            if "skipped" in row:
                lines.append(f"| {row['batch']} | skipped: {row['skipped']} | | | | | | | |")
            for name, one in row.get("found", {}).items():
                lines.append(f"| {row['batch']} | `{name}` | {' | '.join(_measured(one))} |")
    return "\n".join([GPU_INTRODUCTION, *lines, ""])


def _measured(one: dict[str, Any]) -> list[str]:
    cells = []
    for part in ("first", "further"):
        cap = one["cap"].get(part)
        text = f"{one['ratio'][part]:.2f}" + ("" if cap is None else f" ({cap:.2f})")
        cells += [
            f"{one[part] * 1e3:.1f} ms",
            f"**{text}, above its cap**" if part in one["exceeded"] else text,
        ]
    peak = "" if one["memory"] is None else f"{one['memory'] / 2**30:.1f} GB"
    return [*cells, f"{one['throughput']:.1f}", f"{one['ratio']['total']:.2f}", peak]


def serving(bodies: Sequence[dict[str, Any] | None]) -> str:
    """The page of vLLM, of the measurements that are there."""
    there = [body for body in bodies if body is not None]
    if not there:
        return f"{SERVING_INTRODUCTION}\n**Not yet measured.**\n"
    return "\n".join([SERVING_INTRODUCTION, *(line for body in there for line in _shape(body))])


def _shape(body: dict[str, Any]) -> list[str]:
    """What was measured of one shape."""
    setting = body["setting"]
    busy = [turn["machine"] for row in body["rows"] for turn in row["turns"]]
    told = ", ".join(f"{key} {value}" for key, value in body["versions"].items())
    lines = [
        f"## {setting['shape']}",
        "",
        f"{setting['text']} text and {body['visual']} visual tokens, float32, {setting['threads']} CPU "
        f"thread{'s' * (setting['threads'] > 1)}; {told}. Other processes kept the machine busy meanwhile (load "
        f"average {min(busy):.1f} to {max(busy):.1f} on {body['processors']} processors).",
        "",
        "| load | turns | | first token | per token | answers | processor | of the cap |",
        "|---:|---:|---" + "|---:" * 5 + "|",
    ]
    for row in body["rows"]:
        runs = [turn["runs"] for turn in row["turns"]]
        for name in dict.fromkeys(name for turn in runs for name in turn):
            base = row["against"].get(name, "plain")
            both = [(turn[base], turn[name]) for turn in runs if base in turn and name in turn]
            cells = _served(both, name == "plain", row["caps"].get(name, {}))
            lines.append(f"| {row['load']} | {len(both)} | `{name}` | {' | '.join(cells)} |")
    return [*lines, ""]


def _served(
    runs: list[tuple[dict[str, float | None], dict[str, float | None]]],
    is_plain: bool,
    cap: dict[str, float],
) -> list[str]:
    """A contestant's cells, from its runs and those it is compared with."""
    cells, share = [], ""
    for part in ("first", "further", "total", "processor"):
        pairs = [(theirs[part], ours[part]) for theirs, ours in runs]
        known = [(a, b) for a, b in pairs if a is not None and b is not None]
        if not known:
            cells.append("")
            continue
        if is_plain:
            cells.append(f"{1e3 * statistics.median(b for _, b in known):.0f} ms")
            continue
        theirs, ours = np.array(known).T
        faster = weighted(theirs, ours)
        of = f" of {cap[part]:.2f}" if part in cap else ""
        between = f" ({faster.low:.2f} to {faster.high:.2f})" if len(known) > 1 else ""
        cells.append(f"{faster.value:.2f}{of}{between}")
        if part == "processor" and cap:
            reached = faster.value / cap["total"]
            share = f"{reached:.0%}" if reached <= SLACK else "**above its cap**"
    return [*cells, share]


def main() -> int:
    """Rewrites the pages."""
    PEERS.write_text(peers(read("peers")))
    GPU.write_text(gpu(read("gpu")))
    SERVING.write_text(serving([read(name) for name in SERVED]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
