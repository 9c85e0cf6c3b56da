"""One teacher-forced pass that equals decoding with eviction, step by step, and has gradients.

Layers below the prune layer run as they are, once. From the attention of the last of them the predictor chooses a
rate for every step; kept sets only shrink, so the choice at step t masks keys for the row of step t alone, and all
rows can run at once. DyRate, 2501.14204, Section III-C; masks of key columns, not of query rows (eq. 6, as settled).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...core.features import shares_by_type
from ...core.predictor import RatePredictor
from ...core.scores import Score
from ...core.tokens import TokenMap, classify
from ...core.view import View
from ...engine.adapters import adapter_for
from ...engine.rows import attention_rows
from ..examples import Example, encode
from .attention import soft_keys

Choose = Callable[[Tensor], Tensor]  # logits (B K) -> one-hot (B K), with a gradient or without


@dataclass(frozen=True)
class Batch:
    """Prompts with their answers.

    Attributes:
        inputs: keyword arguments of the model: `input_ids` (B T), `attention_mask` (B T), pixels. A prompt is padded on
            its left, an answer on its right.
        prompt: columns of the prompts, the same for all.
    """

    inputs: dict[str, Tensor]
    prompt: int

    @property
    def answered(self) -> Bool[Tensor, "B S"]:
        """Which steps have a word to predict: step t predicts column prompt + t."""
        return self.inputs["attention_mask"][:, self.prompt :].bool()


@dataclass(frozen=True)
class Rollout:
    """What came of a pass.

    Attributes:
        logits: of the answers' words, (B S V): step t predicts column prompt + t.
        kept: visual tokens alive from the prune layer on at each step, (B S), with a gradient.
        choice: the rate chosen at each step, one-hot (B S K), with a gradient.
        total: visual tokens of each sample.
    """

    logits: Float[Tensor, "B S V"]
    kept: Float[Tensor, "B S"]
    choice: Float[Tensor, "B S K"]
    total: Int[Tensor, B]


class _Reached(Exception):  # noqa: N818
    """The prune layer is about to run."""


@dataclass(frozen=True)
class _Below:
    """What the layers below the prune layer leave: inputs (B T D) of the last of them and of the prune layer."""

    last: Tensor
    hidden: Tensor
    kwargs: dict[str, Any]


@torch.no_grad()
def _run_below(model: Any, body: Any, layer: int, inputs: dict[str, Tensor]) -> _Below:
    caught: dict[int, tuple[Tensor, dict[str, Any]]] = {}

    def catch(index: int) -> Any:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            caught[index] = (args[0] if args else kwargs["hidden_states"], kwargs)
            if index == layer:
                raise _Reached

        return hook

    layers = body.language_model.layers
    handles = [layers[i].register_forward_pre_hook(catch(i), with_kwargs=True) for i in (layer - 1, layer)]
    try:
        model(**inputs, use_cache=False)
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return _Below(caught[layer - 1][0], caught[layer][0], caught[layer][1])


class _Steps:
    """The views that the engine would show at each step, from one pass over the layers below."""

    def __init__(self, model: Any, layer: int, batch: Batch, below: _Below) -> None:
        self.layer, self.batch, self.below = layer, batch, below
        self.adapter = adapter_for(model)
        self.body = self.adapter.body(model)
        self.layers = self.body.language_model.layers
        config, prompt = self.body.config, batch.prompt
        real, ids = batch.inputs["attention_mask"].bool(), batch.inputs["input_ids"]
        visual = ids == self.adapter.image_token(config)
        per_image, grid = self.adapter.per_image(config), self.adapter.grid(config)
        tokens = classify(visual[:, :prompt], real[:, :prompt], per_image=per_image, grid=grid)
        self.tokens, self.real = tokens, real
        self.total = visual.sum(1)
        most = int(self.total.max())
        self.columns = (~visual).long().argsort(dim=1, stable=True)[:, :most]  # (B N)
        self.present = torch.arange(most, device=ids.device) < self.total[:, None]
        self.notes: dict[str, Tensor] = {}
        module = self.layers[layer - 1]
        self.keys = self.adapter.keys(module, below.last, below.kwargs["position_embeddings"])

    def tokens_at(self, step: int) -> TokenMap:
        return self.tokens.with_responses(self.batch.prompt + step)

    def attend(self, tokens: TokenMap, index: int, queries: Tensor) -> Tensor:
        """Attention of the layer below from some columns to all columns so far."""
        if index != self.layer - 1:
            raise ValueError("training ranks by the layer before the prune layer; this ranking looks further back")
        columns = tokens.kind.shape[1]
        source = queries.clamp(min=0)[..., None].expand(-1, -1, self.below.last.shape[-1])
        cos, sin = self.below.kwargs["position_embeddings"]
        at = tuple(
            t.expand(len(queries), -1, -1).gather(1, queries.clamp(min=0)[..., None].expand(-1, -1, t.shape[-1]))
            for t in (cos, sin)
        )
        module: Any = self.layers[index]
        asked = self.adapter.queries(module, self.below.last.gather(1, source), (at[0], at[1]))
        before = torch.arange(columns, device=queries.device) <= queries[..., None]
        allowed = before & self.real[:, None, :columns] & (queries >= 0)[..., None]
        return attention_rows(asked, self.keys[:, :, :columns], module.self_attn.scaling, allowed)

    def view(self, step: int, alive: Bool[Tensor, "B N"]) -> View:
        """What the engine shows before the prune layer at `step`."""
        tokens, prompt = self.tokens_at(step), self.batch.prompt
        columns = torch.arange(prompt, device=alive.device).expand(len(alive), -1)
        rows = torch.where(self.real[:, :prompt], columns, -1) if step == 0 else columns[:, :1] * 0 + prompt + step - 1
        return View(
            layer=self.layer,
            step=step,
            layers=len(self.layers),
            total=self.total,
            visual=torch.where(alive, self.columns, -1),
            mask=alive,
            hidden=self.below.hidden[:, : rows.shape[1]],
            rows=rows,
            tokens=tokens,
            attend=lambda index, queries: self.attend(tokens, index, queries),
            notes=self.notes,
        )


def roll_out(model: Any, predictor: RatePredictor, score: Score, layer: int, batch: Batch, choose: Choose) -> Rollout:
    """Runs prompts and answers at once, under the keep sets that decoding with a cache would have.

    Args:
        model: frozen, of a supported family.
        predictor: picks the rates.
        score: ranks tokens, from the attention of the layer before `layer`.
        layer: the prune layer, 1 or more.
        batch: prompts with answers.
        choose: from the predictor's logits to a one-hot choice.

    Raises:
        ValueError: the score looks back further than one layer.
    """
    steps = batch.inputs["input_ids"].shape[1] - batch.prompt
    body = adapter_for(model).body(model)
    views = _Steps(model, layer, batch, _run_below(model, body, layer, batch.inputs))
    alive = views.present
    kept, weights, choices = [], [], []
    for step in range(steps):
        view = views.view(step, alive)
        with torch.no_grad():
            shares = shares_by_type(view)
            notice = getattr(score, "notice", None)
            if notice is not None:
                notice(view)
            rank = _ranks(score(view), alive)
        choice = choose(predictor(shares))
        stays = (rank[:, None] < predictor.keep(views.total)[..., None]).to(choice.dtype)  # (B K N)
        chosen = torch.einsum("bk,bkn->bn", choice, stays)
        alive = alive & (chosen > 0.5)
        # Forward, sets only shrink. Backward, each step answers for its own set: through a product over the steps, no
        # step could learn to keep what the others, whose choices are as likely to change, drop anyway.
        soft = alive.float() + chosen - chosen.detach()
        choices.append(choice)
        kept.append(soft.sum(1))
        weights.append(soft)
    logits = _run_above(model, body, views, torch.stack(weights, 1), layer)
    return Rollout(logits, torch.stack(kept, 1), torch.stack(choices, 1), views.total)


def _ranks(scores: Tensor, alive: Tensor) -> Tensor:
    """Place of each alive token in the ranking, ties to the earlier; dead tokens come last."""
    order = scores.float().masked_fill(~alive, -torch.inf).argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, (~alive).long().gather(1, order).argsort(dim=1, stable=True))
    return order.argsort(dim=1)


def _run_above(model: Any, body: Any, views: _Steps, weights: Float[Tensor, "B S N"], layer: int) -> Tensor:
    """The prune layer and those above it, with each row seeing what was alive at its step; the answers' logits."""
    prompt, below = views.batch.prompt, views.below
    batch, length = views.real.shape
    steps = weights.shape[1]
    row_step = (torch.arange(length, device=weights.device) - prompt + 1).clamp(0, steps - 1)
    by_row = weights[:, row_step]  # (B T N)
    weight = torch.ones(batch, length, length, device=weights.device)
    index = torch.where(views.present, views.columns, length)[:, None].expand(-1, length, -1)
    weight = F.pad(weight, (0, 1)).scatter(2, index, by_row)[..., :length]
    own = torch.eye(length, dtype=torch.bool, device=weights.device)
    weight = torch.where(own, 1.0, weight)
    seen = (torch.ones(length, length, dtype=torch.bool, device=weights.device).tril() & views.real[:, None]) | own
    decoder, hidden = body.language_model, below.hidden
    kwargs = {k: v for k, v in below.kwargs.items() if k not in ("hidden_states", "past_key_values", "attention_mask")}
    with soft_keys(decoder, seen, weight):
        for block in decoder.layers[layer:]:
            out = block(hidden, attention_mask=None, **kwargs)
            hidden = out[0] if isinstance(out, tuple) else out
    states = decoder.norm(hidden[:, prompt - 1 : length - 1])
    logits: Tensor = model.get_output_embeddings()(states)
    return logits


def sizes(model: Any, inputs: dict[str, Tensor], prompt: int) -> tuple[Tensor, Tensor]:
    """Text tokens of each prompt, and visual ones."""
    ids, real = inputs["input_ids"][:, :prompt], inputs["attention_mask"][:, :prompt].bool()
    adapter = adapter_for(model)
    visual = ids == adapter.image_token(adapter.body(model).config)
    return (real & ~visual).sum(1), visual.sum(1)


def batch_of(model: Any, processor: Any, chosen: Sequence[Example]) -> tuple[Batch, Tensor, Tensor]:
    """Examples as a batch on the model's device, with the text and the visual tokens of each prompt."""
    inputs, prompt = encode(processor, chosen)
    text, total = sizes(model, inputs, prompt)
    moved = {k: v.to(model.device, model.dtype if v.is_floating_point() else None) for k, v in inputs.items()}
    return Batch(moved, prompt), text.to(model.device), total.to(model.device)


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Of the answers' words, mean, in nats."""
    words = batch.inputs["input_ids"][:, batch.prompt :]
    return F.cross_entropy(logits[batch.answered].float(), words[batch.answered])


@torch.no_grad()
def unpruned_logits(model: Any, batch: Batch) -> Tensor:
    """Logits (B S V) of the answers' words with all tokens."""
    hidden = model(**batch.inputs, use_cache=False).logits
    logits: Tensor = hidden[:, batch.prompt - 1 : -1]
    return logits
