"""Text without pictures, for the update to leave the language model's own language alone.

A low-rank update that sees nothing but short answers about pictures forgets how to talk. So it also sees conversations
that the language model as it came makes up by itself, question and answer (Xu et al. 2406.08464 make instructions so),
and is held to that model's next-word distribution there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from foveate.models.smol.base import Base

COUNT = 512  # conversations made up
_ASKED, _ANSWERED = 40, 56  # most tokens of a question and of an answer
_AT_ONCE = 64


@dataclass(frozen=True)
class Rehearsal:
    """Made-up conversations, and the model that they are held to.

    Attributes:
        teacher: the language model as it came.
        ids: conversations, padded on the right.
        answered: which of the next tokens belong to an answer; entry t is of the token after t.
    """

    teacher: Any
    ids: Int[Tensor, "N T"]
    answered: Bool[Tensor, "N T"]

    def loss(self, model: Any, step: int, batch: int) -> Float[Tensor, ""]:
        """KL(teacher || model) of the next word, mean over the words of `batch` answers, others at every step."""
        chosen = torch.arange(step * batch, (step + 1) * batch) % len(self.ids)
        ids, answered = (part[chosen].to(model.device) for part in (self.ids, self.answered))
        with torch.no_grad():
            wanted = self.teacher(ids).logits[answered].float().log_softmax(-1)
        found = model.lm_head(model.model.language_model(ids).last_hidden_state[answered])
        found = found[:, : wanted.shape[1]].float().log_softmax(-1)
        return (wanted.exp() * (wanted - found)).sum(-1).mean()


def rehearsal(
    base: Base, opening: str, asked: str, answered: str, file: Path, count: int = COUNT
) -> Rehearsal:
    """Conversations made up by `base`, or those in `file`, where they are kept for a run that goes on.

    Args:
        base: the language model as it came, and its tokenizer.
        opening: text that a question follows, in the chat template.
        asked: text between a question and its answer.
        answered: the token that ends both.
        file: of safetensors.
        count: of conversations.
    """
    if not file.is_file():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            ids, marks = _made_up(base, opening, asked, answered, count)
        save_file({"ids": ids, "answered": marks}, file)
    known = load_file(file)
    return Rehearsal(base.model.requires_grad_(False).eval(), known["ids"], known["answered"])


@torch.no_grad()
def _made_up(
    base: Base, opening: str, asked: str, answered: str, count: int
) -> tuple[Tensor, Tensor]:
    """Ids and marks of `count` conversations."""
    encode = base.tokenizer
    end = base.tokenizer.convert_tokens_to_ids(answered)
    first = torch.tensor([encode(opening, add_special_tokens=False)["input_ids"]])
    between = encode(asked, add_special_tokens=False)["input_ids"]
    rows: list[tuple[list[int], int]] = []
    for start in range(0, count, _AT_ONCE):
        questions = _said(base.model, first.expand(min(_AT_ONCE, count - start), -1), _ASKED, end)
        prompts = [[*first[0].tolist(), *question, *between] for question in questions]
        longest = max(map(len, prompts))
        padded = torch.tensor([[end] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        answers = _said(base.model, padded, _ANSWERED, end, mask)
        rows += [
            ([*prompt, *answer, end], len(prompt))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
    ids = torch.full((len(rows), max(len(row) for row, _ in rows)), end)
    marks = torch.zeros(ids.shape, dtype=torch.bool)
    for number, (row, said) in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        marks[number, said - 1 : len(row) - 1] = True
    return ids, marks


def _said(
    model: Any, ids: Tensor, longest: int, end: int, mask: Tensor | None = None
) -> list[list[int]]:
    """What the model says after each row, drawn, without the token that ends it."""
    mask = torch.ones_like(ids) if mask is None else mask
    options = {
        "do_sample": True,
        "temperature": 0.8,
        "top_k": 0,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    out = model.generate(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=longest,
        **options,
    )
    said = [row[ids.shape[1] :].tolist() for row in out]
    return [row[: row.index(end)] if end in row else row for row in said]
