"""Teacher forcing as users decode: a prefill, then steps on a cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import foveate
from foveate.core.method import Method
from foveate.tune.train.dyrate.rollout import Batch
from models.tiny import cache_in, held


@torch.no_grad()
def decoded(made: Any, given: Batch, *methods: Method) -> Tensor:
    """Logits (B S V) of the answers' words by a prefill and cached decoding under `apply`."""
    seen, prompt = given.inputs, given.prompt
    first = {
        k: v[:, :prompt] if k in ("input_ids", "attention_mask", "position_ids") else v
        for k, v in seen.items()
    }
    with foveate.apply(made, *methods):
        out = made(**first, use_cache=True)
        cache, logits = cache_in(out), [out.logits[:, -1]]
        for column in range(prompt, seen["input_ids"].shape[1] - 1):
            mask = torch.ones_like(seen["attention_mask"][:, : column + 1])
            mask[:, :prompt] = seen["attention_mask"][:, :prompt]
            ids, places = (seen[k][:, column : column + 1] for k in ("input_ids", "position_ids"))
            out = made(input_ids=ids, position_ids=places, attention_mask=mask, **held(cache))
            logits.append(out.logits[:, -1])
    return torch.stack(logits, 1)
