"""Writes docs/families.md: family x method x backend, from what the tests run. `python tests/table.py` renews it."""

from __future__ import annotations

from pathlib import Path

from foveate.engine.adapters import adapters
from foveate.engine.decoders import PROVEN
from foveate.engine.refused import REFUSED
from models.families import FAMILIES
from models.processors import PROCESSORS
from models.tiny import FAMILIES as ALIKE
from oracles.crossing import CROSSED

PAGE = Path(__file__).parent.parent / "docs" / "families.md"
HEAD = """# Models

This page lists the model families that `foveate.apply` supports. `python tests/table.py` generates it from the
tests, and a test fails when it is out of date. `foveate doctor MODEL` checks your own model and its weights.

**Tested** means this, on a tiny random-weight model of the real configuration class, in each named attention backend:

- Dropping equals masking, in the prefill and in every decode step.
- Counts equal the schedule.
- Batches of different images, padded on either side, equal each sample alone.
- The attention rows that scores see are the model's own.

The tests passed with transformers 5.17.0 and 5.24.0.

## Families

Chat template, processor and `generate` run as users run them (tests/oracles/test_users_path.py) for {processors}.
PerceptionLM and FastVLM are tested with another tower than theirs, which needs timm.

Each family is tested with every one of these: {methods}.
`decay` drops tokens at every step, and `ragged` keeps different numbers in the samples of a batch.
"""
BACKENDS = """## Flash attention

**Tested**: transformers' own flash path (which mask, which positions, what is unpadded) around kernels written in
Python gives what sdpa gives. This holds for LLaVA and Qwen2.5-VL, alone and in ragged batches, in the prefill and
in decode steps. It holds for LLaVA in a second turn too, with and without weights of kept tokens
(tests/engine/test_flash.py).

**Not tested**: no real kernel, of flash attention 2 or 3, has run with Foveate. We read in transformers 5.23 that
the inputs fit. The given mask covers exactly the keys in the cache, and its end the rows that run. That is where
transformers looks for the queries. Without weights, keys are views of a larger buffer with their last dimension
contiguous, which is all that the kernels require. float32 states are cast there as without Foveate.

**Refused**: families with masks of their own (marked * below), sliding windows, or queries scaled by position.
Its kernels would count over the tokens that are left. Weights are refused where products are capped, or where
heads are wider than 254.

## Flex attention

**Tested**: it gives what sdpa gives (eager for PaliGemma 2), for LLaVA in two turns, alone and in ragged batches,
with and without weights. It does so in `generate` for Gemma 3, PaliGemma, PaliGemma 2, Cohere 2, LLaVA-NeXT and
Ministral 3, whose masks, caps and scales are more than causal attention (tests/engine/test_flex.py). The kernel
compiled for a CPU ran for one sample.

**Not tested**: no kernel has run on a GPU with Foveate. transformers has no flex attention for decoders with
positions in time, height and width. Training and searching are tested under it, too.

**Refused**: the self-check of `foveate doctor`, which needs dense masks.
"""


def table() -> str:
    """The page."""
    lines = [
        HEAD.format(processors=", ".join(PROCESSORS), methods=", ".join(CROSSED)),
        "| family | backends | videos |",
        "|---|---|---|",
    ]
    for name, family in FAMILIES.items():
        videos = "tested" if "v" in family.kinds else ""
        lines.append(f"| {name} | {', '.join(family.backends)} | {videos} |")
    alike = [name for name in ALIKE if name not in FAMILIES]
    lines += [
        "",
        f"{', '.join(alike)}: tested with every method, by an oracle of their own (tests/oracles/test_oracles.py).",
        "",
    ]
    lines += [
        "Tested decoders: " + ", ".join(PROVEN) + ". Any other is refused, whatever the family.",
        "",
        BACKENDS,
    ]
    lines += [
        "## Which tokens may be dropped",
        "",
        "A token may be dropped if its id is the image's or the video's placeholder. No other token is ever dropped.",
        "",
        "| family | structure tokens | may be dropped | one image, where each gets its share |",
        "|---|---|---|---|",
    ]
    for kind, adapter in sorted(adapters().items()):
        dropped = (
            ""
            if adapter.structure == "none"
            else "no: text"
            if adapter.stays
            else "yes: placeholders too"
        )
        structure = adapter.structure.replace("|", "\\|")
        lines.append(
            f"| {kind}{'*' * adapter.own_masks} | {structure} | {dropped} | {adapter.image} |"
        )
    lines += ["", "## Refused", "", "| family | reason |", "|---|---|"]
    lines += [f"| {kind} | {reason} |" for kind, reason in sorted(REFUSED.items())]
    lines += [
        "",
        "A family that this page does not name is refused too: it has no adapter.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(table())
