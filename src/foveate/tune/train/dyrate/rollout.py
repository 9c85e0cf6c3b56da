"""One teacher-forced pass that equals decoding with eviction, step by step, and has gradients.

Layers below the prune layer run as they are, once. From the attention of the last of them the
predictor chooses a rate for every step. Kept sets only shrink, so the choice at step t masks keys
for the row of step t alone, and all rows can run at once. DyRate, 2501.14204, Section III-C; masks
of key columns, not of query rows (eq. 6, as settled).

Shapes: B samples, T columns of prompt and answer, S steps, N visual tokens of the sample with the
most, K rates, H heads, V words of the vocabulary, R rows that run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ....artefacts.weighting import UNWEIGHED, Weighting
from ....core.contract import Schedule, Score
from ....core.features import shares_by_type
from ....core.method import Method
from ....core.predictor import RatePredictor
from ....core.schedules import PerLayer
from ....core.selection import places
from ....core.view import View
from ....engine.anatomy import anatomy_of
from ....engine.replay.replay import Replay
from ....models.loaded import Loaded
from ...examples import Example, encode
from .attention import one_span, soft_keys
from .speaking import Cut, Leaving, cut_by, speaks
from .steps import Steps

Choose = Callable[[Tensor], Tensor]  # logits (B K) -> one-hot (B K), with a gradient or without


@dataclass(frozen=True)
class Batch:
    """Prompts with their answers.

    Attributes:
        inputs: keyword arguments of the model: `input_ids` (B T), `attention_mask` (B T), pixels.
            A prompt is padded on its left, an answer on its right.
        prompt: columns of the prompts, the same for all.
    """

    inputs: dict[str, Tensor]
    prompt: int

    @property
    def prompts(self) -> dict[str, Tensor]:
        """The model's keyword arguments for the prompts alone."""
        whole = self.inputs["input_ids"].shape
        return {
            name: value[:, : self.prompt] if value.shape == whole else value
            for name, value in self.inputs.items()
        }

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
        decode: whether the predictor decides before decode steps too; else its choice at the
            prefill stays.
        weighting: what kept tokens weigh, and whether they become means. Gradients take both as
            given.

    Raises:
        ValueError: the score looks back further than one layer, or the decoder is of a form that
            is not supported.
    """
    method = _speaking(score, weighting)
    views, chosen = _decide(model, predictor, method, layer, batch, choose, decode)
    if decode or chosen.weight.requires_grad:
        logits = _run_above(views, chosen, method)
    else:  # nothing is asked of what was dropped, and it never comes back
        logits = _run_kept(views, chosen.weight[:, 0] > 0.5, method)
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
    """`Rollout.kept` alone.

    What is kept is known before the prune layer, so nothing above is run.
    """
    method = _speaking(score, weighting)
    _, chosen = _decide(model, predictor, method, layer, batch, choose, decode)
    return chosen.kept


@torch.no_grad()
def at_every_rate(
    model: Any,
    predictor: RatePredictor,
    score: Score,
    layer: int,
    batch: Batch,
    weighting: Weighting = UNWEIGHED,
) -> tuple[Float[Tensor, "B H 4"], Iterator[tuple[Float[Tensor, "B S V"], Float[Tensor, "B S"]]]]:
    """Every rate of the predictor, chosen at the prefill and kept.

    Layers below the prune layer run once, and above it only what is kept.

    Returns:
        What the predictor sees at the prefill; and for each rate, when it is asked for, the
        answers' logits and the kept counts.
    """
    method = _speaking(score, weighting)
    views = _views(model, score, layer, batch)
    view = views.view(0, views.present)
    place = _place(score, view)  # (B N)
    keep_counts = predictor.keep(views.total)  # (B K)

    @torch.no_grad()
    def answers() -> Iterator[tuple[Tensor, Tensor]]:
        for keep in keep_counts.unbind(-1):  # (B)
            # The newest token stays whatever its place, as in the engine: its state is the output.
            stays = (place < keep[:, None]) | (view.visual == view.newest)
            alive = views.present & stays
            kept = alive.sum(1)[:, None].expand_as(batch.answered).float()  # the same at each step
            yield _run_kept(views, alive, method), kept

    return shares_by_type(view), answers()


@dataclass(frozen=True)
class _Chosen:
    """What the predictor chose at each step, with gradients.

    Attributes:
        weight: of every visual token: 1 if it is alive, 0 if not.
        kept: how many stay.
        choice: the rates, one-hot.
        cut: what the choice at the prefill leaves; without gradients.
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
    """Runs the layers below the prune layer and lets the predictor choose, step by step.

    Each step starts from what the one before left alive. Without `decode` there is one choice, the
    prefill's, and it is repeated over all steps.
    """
    score = method.score
    views = _views(model, score, layer, batch)
    steps = batch.inputs["input_ids"].shape[1] - batch.prompt
    alive = views.present  # (B N)
    weights = []
    kept = []
    choices = []
    cut = Cut(views.at.hidden, None)
    for step in range(steps if decode else 1):
        view = views.view(step, alive)
        with torch.no_grad():
            shares = shares_by_type(view)  # (B H 4)
            place = _place(score, view)  # (B N)
        choice = choose(predictor(shares))  # (B K), one-hot
        # stays[b, k, n] = 1 if rate k keeps token n: it is among the first keep[b, k] by its place.
        keep = predictor.keep(views.total)  # (B K)
        stays = (place[:, None] < keep[..., None]).to(choice.dtype)
        # The sum over k picks the row of the chosen rate, and carries its gradient to the choice.
        chosen = torch.einsum("bk,bkn->bn", choice, stays)
        # The newest token stays whatever its place, as in the engine: its state is the output.
        chosen = torch.where(view.visual == view.newest, 1.0, chosen)
        before = alive
        alive = alive & (chosen > 0.5)
        with torch.no_grad():
            if step == 0:
                cut = cut_by(method, view, views.at.hidden, alive)
            views.hand_over(method, cut, step, before, alive)
        # Straight-through: the value is `alive`, the gradient is that of `chosen`. Forward, sets
        # only shrink. Backward, each step answers for its own set: through a product over the
        # steps, no step could learn to keep what the others, whose choices are as likely to
        # change, drop anyway.
        soft = alive.float() + chosen - chosen.detach()
        weights.append(soft)
        kept.append(soft.sum(1))
        choices.append(choice)

    def over_steps(values: list[Tensor]) -> Tensor:
        """(B S ...) of the steps' values, or of the prefill's alone, which then holds for all."""
        stacked = torch.stack(values, 1)
        return stacked if decode else stacked.expand(-1, steps, *stacked.shape[2:])

    return views, _Chosen(over_steps(weights), over_steps(kept), over_steps(choices), cut)


def _speaking(score: Score, weighting: Weighting) -> Method:
    """A method with the score, the weights and the merge.

    The predictor says how many stay, so its schedule is not looked at.
    """
    return weighting.on(Method(score, PerLayer((1.0,))))


def _place(score: Score, view: View) -> Int[Tensor, "B N"]:
    """How many of the tokens alive are ranked before each: 0 for the best."""
    score.take_notice(view)
    return places(score(view, view.alive), view.mask)


@torch.no_grad()
def _views(model: Any, score: Score, layer: int, batch: Batch) -> Steps:
    """The views before the prune layer, after running the layers below it."""
    replay = Replay(model, score.needs)
    return Steps(replay, replay.run(replay.start(batch.inputs, batch.prompt), (), layer))


def _run_above(views: Steps, chosen: _Chosen, method: Method) -> Tensor:
    """Runs the prune layer and those above it; each row sees what was alive at its step.

    All rows run at once, those of dropped tokens too: nobody sees them, but a weight that is 0 now
    has a gradient. Under a method that weighs or averages, each row sees the numbers, keys and
    values that its step has.

    Returns:
        Logits of the answers' words (B S V).
    """
    weights = chosen.weight
    prompt = views.prompt
    batch, length = views.real.shape
    steps = weights.shape[1]
    device = weights.device
    # Rows of the prompt run at step 0. The row in column prompt + t - 1 runs at step t.
    row_step = (torch.arange(length, device=device) - prompt + 1).clamp(0, steps - 1)
    by_row = weights[:, row_step]  # (B T N)
    # From visual tokens to key columns: weight[b, row, index[b, n]] = by_row[b, row, n], and 1 for
    # the columns of text. Entries past a sample's tokens write to a spare last column.
    index = torch.where(views.present, views.columns, length)  # (B N)
    index = index[:, None].expand(-1, length, -1)  # (B T N), the same for all rows
    weight = torch.ones(batch, length, length + 1, device=device, dtype=torch.float32)
    weight = weight.scatter(2, index, by_row)[..., :length]  # (B T T)
    # A row sees itself in any case, so that no row, padding's included, has an empty softmax.
    own = torch.eye(length, dtype=torch.bool, device=device)
    weight = torch.where(own, 1.0, weight)
    alive = weights.detach() > 0.5
    leaving = Leaving(method, views.tokens, views.columns, alive, chosen.cut.numbers, prompt)
    spans = leaving.spans if speaks(method) else one_span
    at = views.at
    with soft_keys(
        views.replay.layers[at.layer :], lambda mask: at.sees(mask) | own, weight, spans
    ):
        hidden = at.taught.call.run(at.layer, chosen.cut.hidden)
    return views.replay.anatomy.logits(hidden[:, prompt - 1 : length - 1])


def _run_kept(views: Steps, alive: Bool[Tensor, "B N"], method: Method) -> Tensor:
    """As `_run_above` where one set holds for all rows: what was dropped is not run at all."""
    cut = replace(method, score=_These(alive), schedule=_SoMany(alive.sum(1), views.at.layer))
    return views.replay.anatomy.logits(views.replay.finish(views.at, [cut]))


@dataclass(frozen=True)
class _These(Score):
    """Keeps what was chosen before."""

    alive: Bool[Tensor, "B N"]

    def __call__(self, view: View, counts: Int[Tensor, B]) -> Float[Tensor, "B N"]:
        """1 for what stays."""
        return self.alive.float()


@dataclass(frozen=True)
class _SoMany(Schedule):
    """Keeps as many as were chosen, at once."""

    counts: Int[Tensor, B]
    layer: int

    def acts(self, layer: int, step: int) -> bool:
        """Before the prune layer."""
        return layer == self.layer

    def __call__(self, view: View) -> Int[Tensor, B]:
        """The counts."""
        return self.counts


def sizes(model: Any, inputs: dict[str, Tensor], prompt: int) -> tuple[Tensor, Tensor]:
    """Text tokens of each prompt (B), and visual ones (B)."""
    ids = inputs["input_ids"][:, :prompt]
    real = inputs["attention_mask"][:, :prompt].bool()
    visual = anatomy_of(model).visual(ids)
    return (real & ~visual).sum(1), visual.sum(1)


def batch_of(loaded: Loaded, chosen: Sequence[Example]) -> tuple[Batch, Tensor, Tensor]:
    """Examples as a batch on the model's device.

    Returns:
        The batch, and the number of text tokens and of visual tokens of each prompt (B).
    """
    inputs, prompt = encode(loaded, chosen)
    text, total = sizes(loaded.model, inputs, prompt)
    device = loaded.model.device
    return Batch(loaded.moved(inputs), prompt), text.to(device), total.to(device)


def answer_losses(logits: Float[Tensor, "B S V"], batch: Batch) -> Float[Tensor, B]:
    """Cross-entropy of each answer, mean over its words, in nats."""
    words = batch.inputs["input_ids"][:, batch.prompt :]  # (B S)
    by_class = logits.float().transpose(1, 2)  # (B V S), as cross_entropy wants it
    return over_words(F.cross_entropy(by_class, words, reduction="none"), batch)


def over_words(values: Float[Tensor, "B S"], batch: Batch) -> Float[Tensor, B]:
    """Mean over each answer's own words."""
    return (values * batch.answered).sum(1) / batch.answered.sum(1)


@torch.no_grad()
def unpruned_logits(model: Any, batch: Batch) -> Tensor:
    """Logits (B S V) of the answers' words with all tokens."""
    logits: Tensor = model(**batch.inputs, use_cache=False).logits  # (B T V)
    return logits[:, batch.prompt - 1 : -1]  # the row before a word predicts it
