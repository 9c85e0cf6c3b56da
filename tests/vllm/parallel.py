"""A script: LLaVA over two processes (tensor parallelism) against transformers. `test_parallel.py` runs it."""

from __future__ import annotations

import sys
from pathlib import Path

METHODS = {
    "inside": (
        "none", "fastv:layer=2,keep=0.25", "divprune:keep=0.5", "pdrop:keep=0.5", "visionzip:keep=8",
        "pact:layer=2,weigh=none", "dart", "tome", "divprune:keep=0.25,weigh=nearest,merge=mean",
        "st3:every=2,horizon=4",
        "st3:every=2,horizon=4,weigh=nearest,merge=mean",
    ),
    "before": ("none", "divprune:keep=0.5", "visionzip:keep=8", "divprune:keep=0.25,weigh=nearest,merge=mean"),
}  # fmt: skip


def main(folder: Path, way: str) -> None:
    """Runs every method on three prompts, one of which arrives later."""
    import tiny  # noqa: PLC0415 - the processes that this one starts need none of this
    from speaking import Reference, check, engine, in_steps, prompt, whole_vllm  # noqa: PLC0415

    tiny.save("llava", folder)
    reference = Reference("llava", folder)
    methods = METHODS[way]
    start = engine if way == "inside" else whole_vllm
    llm = start(folder, list(methods[1:]), tensor_parallel_size=2)
    for method in methods:
        prompts = [prompt("llava", seed, method) for seed in range(3)]
        for one, answer in zip(prompts, in_steps(llm, prompts, [0, 0, 2]), strict=True):
            check(answer, reference.answer(one), 1e-4)
        print("same", method, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
