"""Stage 2 of the recipe: conversations, many to a picture, so that one image prefix pays for many answers.

A row is ``system <user> image`` followed by segments ``question <assistant> answer </s>``. In most rows the
segments cannot see each other and all start at the same position, so each is exactly a single-turn
conversation; in the others they follow one another as turns of one chat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from foveate.world import language
from foveate.world.draw import draw
from foveate.world.scenes import MAX_OBJECTS, sample
from lab import grounding

CHATS = 0.15  # share of rows whose segments are turns of one chat
_WEIGHTS = {
    "description": 1.0,
    "caption": 0.5,
}  # loss per answer token; short answers weigh `_SHORT`
_SHORT = 3.0
_ROUND = (
    *language.KINDS,
    "existence",
    "relation",
    "count",
)  # what is asked of a scene; the hardest twice
_ROUNDS = 3
_GROUND = 0.2  # weight of the loss on where the named objects are


@dataclass(frozen=True)
class Dialect:
    """How a model's chat template writes a conversation, in token ids.

    Attributes:
        encode: ids of plain text.
        prefix: everything before the first question: the system prompt, the opening of the user's turn, the image.
        opening: what opens a later turn of the user.
        asked: what stands between a question and its answer.
        answered: what ends an answer, and is learned with it.
        pad: id of padding.
        grid: visual tokens to a side of the picture.
        text: places for text after the prefix of a training row.
    """

    encode: Callable[[str], list[int]]
    prefix: tuple[int, ...]
    opening: tuple[int, ...]
    asked: tuple[int, ...]
    answered: tuple[int, ...]
    pad: int
    grid: int
    text: int


@dataclass(frozen=True)
class Row:
    """One training row as numpy arrays of length `len(PREFIX) + TEXT`."""

    pixels: np.ndarray
    ids: np.ndarray
    positions: np.ndarray
    segment: np.ndarray  # 0 prefix, 1.. segments, -1 padding
    target: np.ndarray  # id of the next token where it belongs to an answer, else -100
    weight: np.ndarray
    named: (
        np.ndarray
    )  # (length, 2): column and row of the object that the words ending here name, else -100


def scene_turns(
    split: str, index: int, most: int = MAX_OBJECTS, ahead: bool = False
) -> tuple[np.ndarray, list[language.Turn]]:
    """Pixels of a scene and a shuffled list of turns: a description, a caption, and questions of every kind.

    If `ahead`, the description says before every object where it is, for `grounding`.
    """
    scene = sample(split, index, most=most)
    rng = np.random.default_rng((*scene.seed, 11))
    turns = [
        language.description(scene, str(rng.choice(language.DESCRIPTION_PROMPTS)), ahead),
        language.Turn(
            "caption",
            str(rng.choice(language.CAPTION_PROMPTS)),
            str(rng.choice(language.captions(scene))),
        ),
    ]
    for _ in range(_ROUNDS):
        for kind in rng.permutation(_ROUND):
            turn = language.ask(scene, str(kind), rng)
            if turn is not None and turn not in turns:
                turns.append(turn)
    return draw(scene).pixels, turns


def pack(
    pixels: np.ndarray, turns: list[language.Turn], rng: np.random.Generator, dialect: Dialect
) -> Row:
    """As many turns as fit into a row."""
    chat = bool(rng.random() < CHATS)
    if chat:
        turns = [turns[int(i)] for i in rng.permutation(len(turns))]
    prefix, size = len(dialect.prefix), len(dialect.prefix) + dialect.text
    ids = np.full(size, dialect.pad)
    positions = np.zeros(size, dtype=np.int64)
    segment = np.full(size, -1)
    target = np.full(size, -100)
    weight = np.zeros(size, dtype=np.float32)
    named = np.full((size, 2), -100)
    start = prefix
    ids[:start], positions[:start], segment[:start] = dialect.prefix, np.arange(start), 0
    for number, turn in enumerate(turns, 1):
        opening = dialect.opening if chat and number > 1 else ()
        question = [*opening, *dialect.encode(turn.question), *dialect.asked]
        answer = [*dialect.encode(turn.answer), *dialect.answered]
        end = start + len(question) + len(answer)
        if end > size:
            continue
        first = start if chat else prefix
        ids[start:end] = question + answer
        positions[start:end] = np.arange(first, first + end - start)
        segment[start:end] = 0 if chat else number
        asked = start + len(question) - 1
        target[asked : end - 1] = answer
        weight[asked : end - 1] = _WEIGHTS.get(turn.kind, _SHORT)
        for mention in turn.mentions:
            last = start + len(opening) + len(dialect.encode(mention.until)) - 1
            named[last] = grounding.target(mention.where, dialect.grid)
        for mention in turn.next:
            last = start + len(question) + len(dialect.encode(mention.until)) - 1
            named[last] = grounding.target(mention.where, dialect.grid)
        start = end
    return Row(pixels, ids, positions, segment, target, weight, named)


def visible(segment: Int[Tensor, "B T"]) -> Bool[Tensor, "B 1 T T"]:
    """Who sees whom: causal, within the own segment and the prefix; padding sees itself."""
    size = segment.shape[1]
    causal = torch.ones(size, size, dtype=torch.bool).tril()
    same = (segment[:, :, None] == segment[:, None, :]) | (segment[:, None, :] == 0)
    return (causal & same)[:, None]


def answer_loss(
    model: Any,
    head: grounding.Grounding,
    pixels: Float[Tensor, "B 3 H W"],
    ids: Int[Tensor, "B T"],
    positions: Int[Tensor, "B T"],
    segment: Int[Tensor, "B T"],
    target: Int[Tensor, "B T"],
    weight: Float[Tensor, "B T"],
    named: Int[Tensor, "B T 2"],
    *,
    end: int,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """Weighted cross-entropy of the answers, and that of `grounding`; the accuracies that the progress line shows."""
    with grounding.listening(model, head.layer) as heard:
        hidden = model.model(
            input_ids=ids,
            pixel_values=pixels,
            attention_mask=visible(segment).to(ids.device),
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state
    looked, seen = head(heard[0], named)
    asked = target >= 0
    logits = model.lm_head(hidden[asked]).float()
    wanted = target[asked]
    share = weight[asked]
    loss = (F.cross_entropy(logits, wanted, reduction="none") * share).sum() / share.sum()
    right = (logits.argmax(-1) == wanted).float()
    short = share == _SHORT
    content = short & (wanted != end)
    accuracy = {"long": right[~short].mean().item(), "short": right[content].mean().item()}
    return loss + _GROUND * looked, accuracy | seen
