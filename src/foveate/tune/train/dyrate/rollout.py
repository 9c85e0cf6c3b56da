"""One teacher-forced pass that equals decoding with eviction, step by step, and has gradients.

Layers below the prune layer run as they are, once. From the attention of the last of them the predictor chooses a
rate for every step; kept sets only shrink, so the choice at step t masks keys for the row of step t alone, and all
rows can run at once. DyRate, 2501.14204, Section III-C; masks of key columns, not of query rows (eq. 6, as settled).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ....artefacts.weighting import UNWEIGHED, Weighting
from ....core.contract import Score
from ....core.features import shares_by_type
from ....core.method import Method
from ....core.predictor import RatePredictor
from ....core.schedules import PerLayer
from ....core.selection import places
from ....core.view import View
from ....engine.anatomy import Anatomy, anatomy_of
from ....engine.assumptions import without_cache
from ....engine.checks import check_teacher_forcing
from ....models.loaded import Loaded
from ...examples import Example, encode
from .attention import Spans, one_span, soft_keys
from .speaking import Cut, Leaving, cut_by
from .steps import Steps, rows_at, run_below

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


def roll_out(
    model: Any,
    predictor: RatePredictor,
    score: Score,
    layer: int,
    batch: Batch,
    choose: Choose,
    decode: bool = True,
    weighting: Weighting = UNWEIGHED,
) -> Rollout:
    """Runs prompts and answers at once, under the keep sets that decoding with a cache would have.

    Args:
        model: frozen, of a supported family.
        predictor: picks the rates.
        score: ranks tokens, from no further back than the layer before `layer`.
        layer: the prune layer.
        batch: prompts with answers.
        choose: from the predictor's logits to a one-hot choice.
        decode: whether the predictor decides before decode steps too; else its choice at the prefill stays.
        weighting: what kept tokens weigh, and whether they become means. Gradients take both as given.

    Raises:
        ValueError: the score looks back further than one layer, or the decoder is of a form that is not supported.
    """
    method = _speaking(score, weighting)
    views, chosen = _decide(model, predictor, method, layer, batch, choose, decode)
    if decode or chosen.weight.requires_grad:
        logits = _run_above(views, chosen, layer, method)
    else:  # nothing is asked of what was dropped, and it never comes back
        logits = _run_kept(views, chosen.cut, chosen.weight[:, 0] > 0.5, layer)
    return Rollout(logits, chosen.kept, chosen.choice, views.total)


@torch.no_grad()
def counts(
    model: Any,
    predictor: RatePredictor,
    score: Score,
    layer: int,
    batch: Batch,
    choose: Choose,
    decode: bool = True,
    weighting: Weighting = UNWEIGHED,
) -> Float[Tensor, "B S"]:
    """`Rollout.kept` alone: what is kept is known before the prune layer, so nothing above is run."""
    method = _speaking(score, weighting)
    return _decide(model, predictor, method, layer, batch, choose, decode)[1].kept


@torch.no_grad()
def at_every_rate(
    model: Any,
    predictor: RatePredictor,
    score: Score,
    layer: int,
    batch: Batch,
    weighting: Weighting = UNWEIGHED,
) -> tuple[Float[Tensor, "B H 4"], Iterator[tuple[Float[Tensor, "B S V"], Float[Tensor, "B S"]]]]:
    """What the predictor sees at the prefill; and at each of its rates, chosen there and kept, logits and kept counts.

    Layers below the prune layer run once, and above it only what is kept.
    """
    method = _speaking(score, weighting)
    views = _views(model, score, layer, batch)
    view = views.view(0, views.present)
    place = _place(score, view)
    counts = predictor.keep(views.total)

    @torch.no_grad()
    def answers() -> Iterator[tuple[Tensor, Tensor]]:
        for keep in counts.unbind(-1):
            alive = views.present & ((place < keep[:, None]) | (view.visual == view.newest))
            kept = alive.sum(1)[:, None].expand_as(batch.answered).float()
            cut = cut_by(method, views.view(0, views.present), views.below.hidden, alive)
            yield _run_kept(views, cut, alive, layer), kept

    return shares_by_type(view), answers()


@dataclass(frozen=True)
class _Chosen:
    """What the predictor chose: every token's weight at every step, how many stay, and the rates, with gradients.

    `cut` is what the choice at the prefill leaves.
    """

    weight: Float[Tensor, "B S N"]
    kept: Float[Tensor, "B S"]
    choice: Float[Tensor, "B S K"]
    cut: Cut


def _decide(
    model: Any,
    predictor: RatePredictor,
    method: Method,
    layer: int,
    batch: Batch,
    choose: Choose,
    decode: bool,
) -> tuple[Steps, _Chosen]:
    score = method.score
    views = _views(model, score, layer, batch)
    steps = batch.inputs["input_ids"].shape[1] - batch.prompt
    alive = views.present
    kept = []
    weights = []
    choices = []
    cut = Cut(views.below.hidden, None)
    for step in range(steps if decode else 1):
        view = views.view(step, alive)
        with torch.no_grad():
            shares = shares_by_type(view)
            place = _place(score, view)
        choice = choose(predictor(shares))
        stays = (place[:, None] < predictor.keep(views.total)[..., None]).to(
            choice.dtype
        )  # (B K N)
        chosen = torch.einsum("bk,bkn->bn", choice, stays)
        chosen = torch.where(
            view.visual == view.newest, 1.0, chosen
        )  # as the engine has it: its state is the output
        before = alive
        alive = alive & (chosen > 0.5)
        with torch.no_grad():
            if step == 0:
                cut = cut_by(method, view, views.below.hidden, alive)
            views.hand_over(method, cut, step, before, alive)
        # Forward, sets only shrink. Backward, each step answers for its own set: through a product over the steps, no
        # step could learn to keep what the others, whose choices are as likely to change, drop anyway.
        soft = alive.float() + chosen - chosen.detach()
        choices.append(choice)
        kept.append(soft.sum(1))
        weights.append(soft)
    weight, some, choice = (torch.stack(values, 1) for values in (weights, kept, choices))
    if not decode:  # the choice at the prefill stays
        weight, choice = (part.expand(-1, steps, -1) for part in (weight, choice))
        some = some.expand(-1, steps)
    return views, _Chosen(weight, some, choice, cut)


def _speaking(score: Score, weighting: Weighting) -> Method:
    """A method with the score, the weights and the merge; the predictor says how many stay, not its schedule."""
    return weighting.on(Method(score, PerLayer((1.0,))))


def _place(score: Score, view: View) -> Int[Tensor, "B N"]:
    """How many of the tokens alive are ranked before each."""
    score.take_notice(view)
    return places(score(view, view.alive), view.mask)


def _views(model: Any, score: Score, layer: int, batch: Batch) -> Steps:
    anatomy = anatomy_of(model)
    check_teacher_forcing(anatomy.adapter, anatomy.body)
    return Steps(
        anatomy, layer, batch.inputs, batch.prompt, run_below(anatomy, score, layer, batch.inputs)
    )


def _run_above(views: Steps, chosen: _Chosen, layer: int, method: Method) -> Tensor:
    """The prune layer and those above it, with each row seeing what was alive at its step; the answers' logits."""
    weights = chosen.weight
    prompt = views.prompt
    below = views.below
    batch, length = views.real.shape
    steps = weights.shape[1]
    row_step = (torch.arange(length, device=weights.device) - prompt + 1).clamp(0, steps - 1)
    by_row = weights[:, row_step]  # (B T N)
    weight = torch.ones(batch, length, length, device=weights.device)
    index = torch.where(views.present, views.columns, length)[:, None].expand(-1, length, -1)
    weight = F.pad(weight, (0, 1)).scatter(2, index, by_row)[..., :length]
    own = torch.eye(length, dtype=torch.bool, device=weights.device)
    weight = torch.where(own, 1.0, weight)
    seen = (
        torch.ones(length, length, dtype=torch.bool, device=weights.device).tril()
        & views.real[:, None]
    ) | own
    kwargs = {
        k: v
        for k, v in without_cache(below.kwargs).items()
        if k not in ("hidden_states", "attention_mask")
    }
    alive = weights.detach() > 0.5
    speaks = method.weigh is not None or method.merge is not None
    leaving = Leaving(method, views.tokens, views.columns, alive, chosen.cut.numbers, prompt)
    spans = leaving.spans if speaks else one_span
    hidden = _layers(views.anatomy, layer, chosen.cut.hidden, kwargs, seen, weight, spans)
    return _logits(views.anatomy, hidden[:, prompt - 1 : length - 1])


def _run_kept(views: Steps, cut: Cut, alive: Bool[Tensor, "B N"], layer: int) -> Tensor:
    """As `_run_above` where one set holds for all rows: what was dropped is not run at all."""
    real = views.real
    below = views.below
    prompt = views.prompt
    dead = torch.where(views.present & ~alive, views.columns, real.shape[1])
    stays = ~F.pad(torch.zeros_like(real), (0, 1)).scatter(1, dead, True)[:, :-1]
    columns = (~stays).long().argsort(dim=1, stable=True)[:, : int(stays.sum(1).max())]
    there = (stays & real).gather(1, columns)
    seen = there[:, None] & (columns[:, None] <= columns[..., None])
    seen = seen | torch.eye(columns.shape[1], dtype=torch.bool, device=seen.device)
    kwargs = {
        "position_embeddings": tuple(
            rows_at(t, columns) for t in below.kwargs["position_embeddings"]
        )
    }
    weight = seen.to(torch.float32)
    if cut.numbers is not None:
        weight = weight * cut.numbers.biases(columns).exp()[:, None]
    hidden = _layers(views.anatomy, layer, rows_at(cut.hidden, columns), kwargs, seen, weight)
    return _logits(views.anatomy, rows_at(hidden, (stays.cumsum(1) - 1)[:, prompt - 1 : -1]))


def _layers(
    anatomy: Anatomy,
    first: int,
    hidden: Tensor,
    kwargs: dict[str, Any],
    seen: Tensor,
    weight: Tensor,
    spans: Spans = one_span,
) -> Tensor:
    with soft_keys(anatomy.decoder, seen, weight, spans):
        for block in anatomy.layers[first:]:
            out = block(hidden, attention_mask=None, **kwargs)
            hidden = out[0] if isinstance(out, tuple) else out
    return hidden


def _logits(anatomy: Anatomy, hidden: Tensor) -> Tensor:
    logits: Tensor = anatomy.head(anatomy.decoder.norm(hidden))
    return logits


def sizes(model: Any, inputs: dict[str, Tensor], prompt: int) -> tuple[Tensor, Tensor]:
    """Text tokens of each prompt, and visual ones."""
    ids = inputs["input_ids"][:, :prompt]
    real = inputs["attention_mask"][:, :prompt].bool()
    visual = anatomy_of(model).visual(ids)
    return (real & ~visual).sum(1), visual.sum(1)


def batch_of(loaded: Loaded, chosen: Sequence[Example]) -> tuple[Batch, Tensor, Tensor]:
    """Examples as a batch on the model's device, with the text and the visual tokens of each prompt."""
    inputs, prompt = encode(loaded, chosen)
    text, total = sizes(loaded.model, inputs, prompt)
    return (
        Batch(loaded.moved(inputs), prompt),
        text.to(loaded.model.device),
        total.to(loaded.model.device),
    )


def answer_losses(logits: Float[Tensor, "B S V"], batch: Batch) -> Float[Tensor, B]:
    """Cross-entropy of each answer, mean over its words, in nats."""
    words = batch.inputs["input_ids"][:, batch.prompt :]
    return over_words(
        F.cross_entropy(logits.float().transpose(1, 2), words, reduction="none"), batch
    )


def over_words(values: Float[Tensor, "B S"], batch: Batch) -> Float[Tensor, B]:
    """Mean over each answer's own words."""
    return (values * batch.answered).sum(1) / batch.answered.sum(1)


@torch.no_grad()
def unpruned_logits(model: Any, batch: Batch) -> Tensor:
    """Logits (B S V) of the answers' words with all tokens."""
    hidden = model(**batch.inputs, use_cache=False).logits
    logits: Tensor = hidden[:, batch.prompt - 1 : -1]
    return logits
