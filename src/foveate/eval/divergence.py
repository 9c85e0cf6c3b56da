"""How far a pruned model's next words are from the unpruned model's: tight where answers need many
pictures.

The unpruned model answers greedily. Then both models are given that answer word by word (teacher
forcing), and at every word the Kullback-Leibler divergence KL(unpruned || pruned) of the next one's
probabilities is taken, in nats. As in `generate`, methods decide in the prompt's prefill; the
answer runs on what they have left in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.method import Method
from ..engine.apply import apply
from ..engine.assumptions import cache_name
from ..methods import as_methods
from ..models.loaded import Loaded


class Divergence(NamedTuple):
    """Of one answer.

    Attributes:
        kl: mean over its words, in nats.
        agreement: share of the words at which both models' likeliest next word is the same, in [0,
            1].
        worst: the largest divergence at a word, in nats.
    """

    kl: float
    agreement: float
    worst: float


@dataclass(frozen=True)
class Reference:
    """A prompt, and what the unpruned model says to it.

    Attributes:
        inputs: the model's, of one sample.
        answer: words of the answer (S), the end of sequence included where it came.
        wanted: log-probabilities of the unpruned model before each of them (S V).
    """

    inputs: dict[str, Tensor]
    answer: Int[Tensor, S]
    wanted: Float[Tensor, "S V"]


@torch.inference_mode()
def reference(loaded: Loaded, inputs: dict[str, Tensor], max_new_tokens: int) -> Reference:
    """The unpruned model's greedy answer to one prompt, and its probabilities.

    Args:
        loaded: a model with its processor.
        inputs: of one sample, as `Loaded.inputs` makes them.
        max_new_tokens: longest answer.

    Raises:
        ValueError: more than one sample.
    """
    if inputs["input_ids"].shape[0] != 1:
        raise ValueError(f"got {inputs['input_ids'].shape[0]} samples; expected one at a time")
    out = loaded.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    answer = out[0, inputs["input_ids"].shape[1] :]
    return Reference(inputs, answer, _forced(loaded, inputs, answer, ()))


@torch.inference_mode()
def divergence(loaded: Loaded, given: Reference, methods: Sequence[Method | str]) -> Divergence:
    """How far the model under `methods` is from the unpruned one on a reference."""
    got = _forced(loaded, given.inputs, given.answer, as_methods(methods))
    kl = (given.wanted.exp() * (given.wanted - got)).sum(-1)
    same = given.wanted.argmax(-1) == got.argmax(-1)
    return Divergence(kl.mean().item(), same.float().mean().item(), kl.max().item())


def _forced(
    loaded: Loaded, inputs: dict[str, Tensor], answer: Tensor, methods: Sequence[Method]
) -> Float[Tensor, "S V"]:
    """Log-probabilities before each word of the answer, prompt and answer run one after the other
    on one cache.
    """
    model: Any = loaded.model
    name = cache_name(model)
    prompt = inputs["input_ids"].shape[1]
    decodes = any(method.drops_later(loaded.anatomy.depth) for method in methods)
    words = answer[None, :-1]
    # A method that drops while decoding wants its words one by one, as `generate` brings them.
    pieces = torch.split(words, 1, 1) if decodes else (words,)

    with apply(model, *methods) if methods else nullcontext():
        out = model(**inputs, use_cache=True)
        logits = [out.logits[0, -1:]]
        seen = prompt
        for piece in pieces:
            if not piece.shape[1]:
                continue
            seen += piece.shape[1]
            mask = torch.ones((1, seen), dtype=torch.long, device=piece.device)
            held = {name: out[name]}
            out = model(input_ids=piece, attention_mask=mask, **held, use_cache=True)
            logits.append(out.logits[0])
    return torch.cat(logits).float().log_softmax(-1)
