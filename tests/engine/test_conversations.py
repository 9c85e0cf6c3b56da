"""Whole conversations at random: turns with and without images, words between, beams swapped, words taken back."""

from __future__ import annotations

import copy
import random as stdlib
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import foveate
from models.tiny import FAMILIES, IMAGE, Batch, Layout, batch, held, model
from oracles.cases import METHODS, Case
from oracles.layouts import TOLERANCE, oracles
from oracles.oracle import Oracle
from oracles.speaking import Speaking

CLOSE = {"atol": TOLERANCE[torch.float32], "rtol": 1e-3}


class Talk:
    """A batch of conversations on one cache, and the oracle of each."""

    def __init__(self, made: Any, judges: list[Oracle]) -> None:
        self.made, self.judges = made, judges
        self.cache = DynamicCache(config=made.config)
        self.mask = torch.ones(len(judges), 0, dtype=torch.long)

    def run(
        self, inputs: dict[str, Tensor], fed: list[tuple[Tensor, list[int]]], at: list[slice]
    ) -> None:
        """More tokens, against what the oracles say of them."""
        count = inputs["input_ids"].shape[1]
        self.mask = torch.cat([self.mask, inputs["attention_mask"]], 1)
        places = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -count:]
        given = {**inputs, "attention_mask": self.mask, "position_ids": places}
        logits = self.made(**given, **held(self.cache), use_cache=True).logits
        for judge, (embeds, owners), where, got in zip(self.judges, fed, at, logits, strict=True):
            want, text = judge.feed(embeds, owners), torch.tensor(owners) < 0
            text[-1] = True
            torch.testing.assert_close(got[where][text], want[text], **CLOSE)

    def turn(self, data: Batch) -> None:
        self.run(data.inputs, list(zip(data.embeds, data.image_of, strict=True)), data.columns)

    def words(self, ids: Tensor) -> None:
        """One more word each."""
        table = self.made.get_input_embeddings()
        fed = [(table(word)[None], [-1]) for word in ids]
        inputs = {
            "input_ids": ids[:, None],
            "attention_mask": torch.ones(len(ids), 1, dtype=torch.long),
        }
        self.run(inputs, fed, [slice(None)] * len(ids))

    def swap(self, order: list[int]) -> None:
        self.cache.reorder_cache(torch.tensor(order))
        self.mask = self.mask[order]
        self.judges = [copy.deepcopy(self.judges[i], {id(self.made): self.made}) for i in order]


def layout(dice: stdlib.Random, samples: int) -> Layout:
    rows = []
    for _ in range(samples):
        row = [dice.randint(2, 4)]
        for _ in range(dice.randint(0, 2)):
            row += [0, dice.randint(1, 4)]
        rows.append(tuple(row))
    return Layout(tuple(rows), dice.random() < 0.7, dice.randint(0, 99))


@torch.no_grad()
def converse(family: str, backend: str, cases: tuple[Case, ...], seed: int) -> None:
    dice, made = stdlib.Random(seed), model(family, backend)
    samples = dice.randint(1, 3)
    talk: Talk | None = None
    with foveate.apply(made, *(c.method for c in cases)):
        for _ in range(3):
            data = batch(family, layout(dice, samples), backend)
            talk = talk or Talk(made, oracles(family, data, cases, made))
            talk.turn(data)
            for _ in range(dice.randint(0, 3)):
                talk.words(
                    torch.randint(
                        3, IMAGE, (samples,), generator=torch.Generator().manual_seed(seed)
                    )
                )
                if dice.random() < 0.5:
                    talk.swap([dice.randrange(samples) for _ in range(samples)])


@pytest.mark.parametrize(
    "method", [name for name, cases in METHODS.items() if not any(case.slow for case in cases)]
)
def test_a_conversation(method: str) -> None:
    converse("llava", "sdpa", METHODS[method], 3)


@pytest.mark.parametrize("method", ["random", "decay", "dyrate", "random+fastv"])
@pytest.mark.parametrize("kind", [Speaking(), Speaking(mean=True, cutoff=-1.0)])
def test_a_conversation_of_weighed_tokens(method: str, kind: Speaking) -> None:
    """Earlier images lose tokens in later turns; numbers go along when beams are swapped."""
    cases = tuple(case.spoken(kind) for case in METHODS[method])
    for seed in (3, 4):
        converse("llava", "sdpa", cases, seed)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(4))
def test_any_conversation(method: str, family: str, seed: int) -> None:
    converse(family, "eager" if seed % 2 else "sdpa", METHODS[method], seed)
