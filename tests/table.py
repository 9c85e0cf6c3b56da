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
HEAD = """# Families

What `foveate.apply` takes, generated from the tests by `python tests/table.py`; a test fails when this page is old.
*Proven* means: on a tiny random-weight model of the real configuration class, in each named attention backend, dropping
equals masking in the prefill and in every decode step, counts equal the schedule, batches of different images padded on
either side equal each sample alone, and the attention rows that scores see are the model's own. `foveate doctor MODEL`
runs such checks on your weights. The tests passed with transformers 5.17.0 and 5.24.0.

## Flash attention

Proven: transformers' own flash path (which mask, which positions, what is unpadded) around kernels written in Python
gives what sdpa gives: LLaVA and Qwen2.5-VL, alone and in ragged batches, in the prefill and in decode steps, LLaVA in
a second turn too, with and without weights of kept tokens (tests/engine/test_flash.py). Read in transformers 5.23,
not run: the mask that is given covers exactly the keys in the cache, and its end the rows that run, which is where
transformers looks for the queries; without weights, keys are views of a larger buffer with their last dimension
contiguous, all that the kernels ask for; float32 states are cast there as without Foveate. Not proven: no real
kernel, of flash attention 2 or 3, was ever run with Foveate. Families with masks of their own (marked *), sliding
windows or queries scaled by position are refused under it, since its kernels would count over the tokens that are
left. Weights are refused under it where products are capped, or where heads are wider than 254.

## Flex attention

Proven: it gives what sdpa gives (eager for PaliGemma 2), for LLaVA in two turns, alone and in ragged batches, with
and without weights, and in `generate` for Gemma 3, PaliGemma, PaliGemma 2, Cohere 2, LLaVA-NeXT and Ministral 3,
whose masks, caps and scales are more than causal attention (tests/engine/test_flex.py). The kernel compiled for a CPU
was run for one sample. Not proven: no kernel on a GPU was ever run with Foveate. transformers has no flex attention
for decoders with positions in time, height and width. Training and searching refuse it.

## What is proven

PerceptionLM and FastVLM are tested with another tower than theirs, which needs timm. Chat template, processor and
`generate` are run as users run them (tests/oracles/test_users_path.py) for {processors}.
"""


def table() -> str:
    """The page."""
    lines = [
        HEAD.format(processors=", ".join(PROCESSORS)),
        f"| family | backends | {' | '.join(CROSSED)} |",
        "|---" * (len(CROSSED) + 2) + "|",
    ]
    for name, family in FAMILIES.items():
        lines.append(f"| {name} | {', '.join(family.backends)} " + "| proven " * len(CROSSED) + "|")
    alike = [name for name in ALIKE if name not in FAMILIES]
    lines += [
        "",
        f"{', '.join(alike)}: proven with every method, by an oracle of their own (tests/oracles/test_oracles.py).",
        "",
    ]
    lines += ["Decoders: " + ", ".join(PROVEN) + ". Any other is refused, whatever the family.", ""]
    lines += [
        "## Which tokens may be dropped",
        "",
        "Every token whose id is the image's or the video's placeholder may be dropped, and no other ever is.",
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
        "Any family that is named nowhere on this page is refused too, as one without an adapter.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(table())
