"""A script: LLaVA in a compiled decoder, pruned before it, against transformers. `test_before.py` runs it."""

from __future__ import annotations

import sys
from pathlib import Path

METHODS = ("divprune:keep=0.5", "visionzip:keep=8", "divprune:keep=0.25,weigh=nearest,merge=mean")


def main(folder: Path) -> None:
    """Runs every method on three prompts that arrive at different times."""
    import tiny  # noqa: PLC0415 - the processes that this one starts need none of this
    from speaking import Reference, check, in_steps, prompt, whole_vllm  # noqa: PLC0415

    tiny.save("llava", folder)
    reference = Reference("llava", folder)
    llm = whole_vllm(folder, list(METHODS), enforce_eager=False)
    for method in METHODS:
        prompts = [prompt("llava", seed, method) for seed in range(3)]
        for one, answer in zip(prompts, in_steps(llm, prompts, [0, 1, 3]), strict=True):
            check(answer, reference.answer(one), 1e-4)
        print("same", method, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
