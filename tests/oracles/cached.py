"""Teacher forcing as users decode: `generate`, made to say given words."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import foveate
from foveate.core.method import Method
from foveate.tune.train.dyrate.rollout import Batch

NO_WORD = 10**6  # an end of sequence that no answer has


@torch.no_grad()
def decoded(made: Any, given: Batch, *methods: Method) -> Tensor:
    """Logits (B S V) of the answers' words by `generate` under `apply`, a prefill and cached steps."""
    ids = given.inputs["input_ids"]
    prompts = given.prompts
    prompts.pop("position_ids", None)  # `generate` makes its own

    def word(sample: int, said: Tensor) -> list[int]:
        return [int(ids[sample, len(said)])]

    with foveate.apply(made, *methods):
        out = made.generate(
            **prompts, max_new_tokens=ids.shape[1] - given.prompt, do_sample=False,
            prefix_allowed_tokens_fn=word, output_logits=True, return_dict_in_generate=True,
            eos_token_id=NO_WORD, pad_token_id=0,
        )  # fmt: skip
    assert torch.equal(out.sequences, ids)
    return torch.stack(out.logits, 1)
