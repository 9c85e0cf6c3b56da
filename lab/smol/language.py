"""Whether the low-rank update has left SmolLM2 its language: answers to plain questions, before and after."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from foveate.models.loaded import Loaded
from foveate.models.smol.base import Base

QUESTIONS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Name three animals.",
    "What color is the sky on a clear day?",
    "How many days are there in a week?",
    "Who wrote Romeo and Juliet?",
    "What do plants need to grow?",
    "Explain in one sentence what a computer is.",
    "What is 2 + 3?",
    "Give a synonym of the word happy.",
    "What is the opposite of hot?",
    "Which planet do we live on?",
)


@dataclass(frozen=True)
class Kept:
    """One question's answers by the language model as it came and as it is now.

    Attributes:
        divergence: KL(before || now) of the next word, mean over the words of the former answer, in nats.
        agreement: share of those words that the model now would also have taken.
    """

    question: str
    before: str
    now: str
    divergence: float
    agreement: float


@torch.inference_mode()
def language_kept(loaded: Loaded, base: Base, longest: int = 32) -> list[Kept]:
    """Asks both models `QUESTIONS`, without an image, greedily."""
    model = loaded.model
    tokenizer = loaded.tokenizer
    found = []
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    options = {
        "max_new_tokens": longest,
        "do_sample": False,
        "eos_token_id": end,
        "pad_token_id": 0,
    }
    for question in QUESTIONS:
        text = loaded.prompt(0, question)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        asked = ids.shape[1]
        mask = torch.ones_like(ids)
        before = base.model.generate(ids, attention_mask=mask, **options)
        now = model.generate(input_ids=ids, attention_mask=mask, **options)
        rows = slice(asked - 1, before.shape[1] - 1)
        old = base.model(before).logits[0, rows].log_softmax(-1)
        new = model(input_ids=before).logits[0, rows, : old.shape[-1]].log_softmax(-1)
        same = (new.argmax(-1) == before[0, asked:]).float().mean().item()
        divergence = (old.exp() * (old - new)).sum(-1).mean().item()
        was, is_now = (
            tokenizer.decode(a[0, asked:], skip_special_tokens=True).strip() for a in (before, now)
        )
        found.append(Kept(question, was, is_now, divergence, same))
    return found
