"""A decoder run layer by layer, from any layer on, with fewer tokens.

So what a search's trials share is run once.

Prompts and their answers run together, teacher forced. The prompt alone decides what is kept, as in
a prefill; the answer's rows then see what is left, as in cached decoding.

Shapes: B samples, T rows that run, C columns of the whole input, P columns of the prompts, S words
of the answers, N visual tokens, D width, H heads, E head size. A row's column is its place in the
whole input: rows are dropped, columns stay. A fill is a row of no column (-1), where a sample keeps
fewer rows than another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...artefacts.weighting import UNWEIGHED, Weighting
from ...core.contract import Score
from ...core.method import Method, Selection
from ...core.schedules import PerLayer
from ...core.tokens import Kind, classify
from ...core.view import View
from ...engine.anatomy import anatomy_of
from ...engine.assumptions import without_cache
from ...engine.attention.masks import for_backend, may_see, needless
from ...engine.attention.rows import attention_rows, replace_rows, take_rows
from ...engine.cache.numbers import Numbers
from ...engine.checks import check_model, check_teacher_forcing
from ...engine.until import states_of, until
from ..tower_view import TowerReader, tower_watched
from ..train.dyrate.rollout import Batch
from .prefix import LayerInput, Prefix, Prompt, Tally


class Runner:
    """Runs batches of one model under schedules of one ranking.

    Args:
        model: of a supported family; frozen.
        score: ranks the tokens.
        within: as `Method` has it.
        weighting: what kept tokens weigh, and whether they become means.

    Raises:
        ValueError: a model that `apply` would refuse, or one whose decoder is fed between its
            layers; weights under flash attention.
    """

    def __init__(
        self,
        model: Any,
        score: Score,
        within: Literal["sample", "image"] = "sample",
        weighting: Weighting = UNWEIGHED,
    ) -> None:
        self.anatomy = anatomy_of(model)
        self.model = self.anatomy.model
        self.body = self.anatomy.body
        self.decoder = self.anatomy.decoder
        self.adapter = self.anatomy.adapter
        check_model(self.model, self.body, self.adapter)
        check_teacher_forcing(self.adapter, self.body)
        self.layers = list(self.decoder.layers)
        self.backend = str(self.decoder.config._attn_implementation)
        self.score = score
        self.within = within
        self.weighting = weighting
        if weighting.weigh != "none" and self.backend.startswith("flash"):
            raise ValueError(
                f"searching with weigh={weighting.weigh} adds a bias to attention, which it cannot "
                f"under {self.backend}; load the model with attn_implementation='sdpa' or 'eager', or "
                "leave out --weigh"
            )
        self.reach = score.needs.back
        self.tally = Tally()

    @torch.no_grad()
    def start(self, batch: Batch) -> Prefix:
        """The batch's embeddings, as they enter layer 0."""
        first = self.layers[0]
        with until(first) as caught, tower_watched(self.anatomy, self.score) as reader_of:
            self.model(**batch.inputs, use_cache=False)
        hidden = states_of(caught[first])
        _, kwargs = caught[first]
        self.tally.towers += len(hidden)
        real = batch.inputs["attention_mask"].bool()
        columns = torch.where(real, torch.arange(real.shape[1], device=real.device), -1)
        visual = self.anatomy.visual(batch.inputs["input_ids"])
        return Prefix(0, hidden, columns, self._prompt(batch, kwargs, reader_of(visual)))

    def _prompt(self, batch: Batch, kwargs: dict[str, Any], look: TowerReader | None) -> Prompt:
        """The batch's own facts, from what layer 0 was called with."""
        config = self.body.config
        ours = ("hidden_states", "position_embeddings", "position_ids", "attention_mask")
        extra = {k: v for k, v in without_cache(kwargs).items() if k not in ours}
        ids = batch.inputs["input_ids"][:, : batch.prompt]
        visual = ids == self.adapter.image_token(config)
        real = batch.inputs["attention_mask"][:, : batch.prompt].bool()
        per_image = self.adapter.per_image(config)
        grid = self.adapter.grid(config)
        tokens = classify(visual, real, per_image=per_image, grid=grid)
        cos, sin = kwargs["position_embeddings"]
        places = kwargs.get("position_ids")
        if places is not None and places.ndim != 2:
            places = None  # rotations alone say where
        return Prompt(batch, tokens, visual.sum(1), (cos, sin), places, extra, look)

    @torch.no_grad()
    def advance(self, state: Prefix, share: float) -> Prefix:
        """Drops down to `share` of the visual tokens before the layer, then runs it."""
        ran = self._dropped(state, share)
        out = self.run_layer(ran, state.prompt)
        trail = (*state.trail, ran)[-self.reach :]
        return Prefix(
            layer=state.layer + 1,
            hidden=out,
            columns=ran.columns,
            prompt=state.prompt,
            trail=trail,
            keep=(*state.keep, share),
            notes=dict(state.notes),
            numbers=ran.numbers,
        )

    def to_end(self, state: Prefix, keep: Sequence[float]) -> Float[Tensor, "B S D"]:
        """Normalised states that predict the answers' words.

        Runs the remaining layers first, each with its share of `keep`.
        """
        for share in keep[state.layer :]:
            state = self.advance(state, share)
        return self.answers(state)

    @torch.no_grad()
    def answers(self, state: Prefix) -> Float[Tensor, "B S D"]:
        """As `to_end`, of a state after the last layer: row s predicts column prompt + s."""
        batch = state.prompt.batch
        length = batch.inputs["input_ids"].shape[1]
        row = _row_of_column(state.columns, length)[:, batch.prompt - 1 : length - 1]  # (B S)
        return self.decoder.norm(take_rows(state.hidden, row.to(state.hidden.device)))

    def method(self, score: Score, keep: Sequence[float]) -> Method:
        """What `apply` would be given for these shares, ranked by `score`."""
        return self.weighting.on(Method(score, PerLayer(tuple(keep)), within=self.within))

    def _dropped(self, state: Prefix, share: float) -> LayerInput:
        """The rows that enter the layer after dropping; they speak for the others as the engine's.

        States are (B R D), columns (B R).
        """
        whole = LayerInput(state.layer, state.hidden, state.columns, state.numbers)
        before = state.keep[-1] if state.keep else 1.0
        drops = share < before
        notices = self.score.takes_notice(state.layer, 0)
        if not (drops or notices):
            return whole
        view = self.view(state)
        if view.visual.shape[1] == 0:
            return whole
        if not drops:
            self.score.take_notice(view)
            return whole
        rest = [share] * (len(self.layers) - state.layer)
        method = self.method(_Ranked(self, state), (*state.keep, *rest))
        found = method.select(view)
        if found is None:
            return whole
        # The newest token stays in any case, as in the engine: its state is the prompt's output.
        keep = found.keep | (view.visual == view.newest)  # (B N)
        hidden = state.hidden
        if method.merge is not None:
            merged = method.merge(view, keep, found.counts)  # (B N D)
            hidden = replace_rows(hidden, view.place(), keep, merged)
        numbers = self._spoken(method, state, view, Selection(keep, found.counts))
        # Which columns are left (B C+1): scatter clears those of the tokens that are dropped, and
        # all else writes to a spare last column.
        length = state.prompt.batch.inputs["input_ids"].shape[1]
        alive = torch.ones((len(keep), length + 1), dtype=torch.bool, device=keep.device)
        gone = torch.where(view.mask & ~keep, view.visual, length)
        alive = alive.scatter(1, gone, False)
        # Which rows stay (B T): those whose column is left, and no fills.
        stay = alive.gather(1, state.columns.clamp(min=0)) & (state.columns >= 0)
        # As in the engine: a stable sort brings the rows that stay to the right, in their order.
        # Samples that keep fewer get fills.
        most = max(1, int(stay.sum(1).max()))
        order = stay.long().argsort(dim=1, stable=True)[:, -most:]  # (B R)
        columns = torch.where(stay.gather(1, order), state.columns.gather(1, order), -1)
        return LayerInput(state.layer, take_rows(hidden, order.to(hidden.device)), columns, numbers)

    def _spoken(
        self, method: Method, state: Prefix, view: View, found: Selection
    ) -> Numbers | None:
        """For how many tokens each column speaks from this cut on; the state's own numbers stay."""
        if method.weigh is None:
            return state.numbers
        counts = method.numbers(method.weigh, view, found.keep, found.counts)
        old = state.numbers or self.ones(state)
        return old.changed(view.visual, found.keep, counts, method.weigh.strength)

    def ones(self, state: Prefix) -> Numbers:
        """Every column of the prompt speaks for itself; so do the answer's, which are past the end."""
        return Numbers.ones(
            len(state.columns), state.prompt.batch.prompt, device=state.columns.device
        )

    def ranked(self, state: Prefix, view: View, counts: Int[Tensor, B]) -> Float[Tensor, "B N"]:
        """The score at this state, computed for the first trial that needs it.

        If it depends on the counts, it is computed once for each of them.
        """
        key = tuple(counts.tolist()) if self.score.needs.counts else None
        if not state.found:
            self.score.take_notice(view)
        if key not in state.found:
            state.found[key] = self.score(view, counts)
        return state.found[key]

    def view(self, state: Prefix) -> View:
        """What the engine would show before the layer in the prompt's prefill."""
        prompt = state.prompt.batch.prompt
        tokens = state.prompt.tokens
        # The answer has not been said yet, so its rows count as fills.
        rows = torch.where(state.columns < prompt, state.columns, -1)  # (B T)
        # Which of the prompt's columns are left (B P); fills write to a spare last column.
        present = torch.zeros((len(rows), prompt + 1), dtype=torch.bool, device=rows.device)
        present.scatter_(1, torch.where(rows < 0, prompt, rows), True)
        left = present[:, :-1] & tokens.are(Kind.IMAGE)
        # A stable sort brings the visual columns to the front, in their order (B N).
        count = left.sum(1, keepdim=True)
        order = (~left).long().argsort(dim=1, stable=True)[:, : int(count.max())]
        mask = torch.arange(order.shape[1], device=rows.device) < count
        visual = torch.where(mask, order, -1)
        return View(
            layer=state.layer,
            step=0,
            layers=len(self.layers),
            total=state.prompt.total,
            visual=visual,
            mask=mask,
            hidden=state.hidden,
            rows=rows,
            tokens=tokens,
            attend=lambda index, queries: self._attend(state, index, queries),
            notes=state.notes,
            look=state.prompt.look,
            recall=lambda index: self._recall(state, index),
            numbers=None if state.numbers is None else state.numbers.of(visual),
        )

    def _attend(self, state: Prefix, index: int, queries: Tensor) -> Tensor:
        """Attention (B H Q P) of layer `index` from the prompt's columns `queries` (B Q) to all.

        The answer's columns are fills here: a prefill has not seen them.
        """
        ran = next(r for r in state.trail if r.layer == index)
        module: Any = self.layers[index]
        prompt = state.prompt.batch.prompt
        held = torch.where(ran.columns < prompt, ran.columns, -1)  # (B T)
        row = _row_of_column(held, prompt).gather(1, queries.clamp(min=0))  # (B Q)
        asked = self.adapter.queries(
            module, take_rows(ran.hidden, row), self._turned(state.prompt, queries)
        )
        keys = self.adapter.keys(module, ran.hidden, self._turned(state.prompt, ran.columns))
        allowed = may_see(queries, held, None) & (queries >= 0)[:, :, None]
        bias = None if ran.numbers is None else ran.numbers.biases(held)  # (B T)
        scaling = module.self_attn.scaling
        shares = attention_rows(asked, keys, scaling, allowed, bias=bias)  # (B H Q T)
        # From rows to columns: out[b, h, q, held[b, t]] = shares[b, h, q, t]. Columns that the
        # layer no longer held have 0; fills add to a spare last column.
        out = shares.new_zeros((*shares.shape[:-1], prompt + 1))
        slot = torch.where(held < 0, prompt, held)[:, None, None].expand(shares.shape)
        return out.scatter_add(-1, slot, shares)[..., :prompt]

    def _recall(self, state: Prefix, index: int) -> Tensor:
        """Keys (B P H*E) of layer `index` by column of the prompt, heads side by side.

        They are 0 where the layer held none.
        """
        ran = next(r for r in state.trail if r.layer == index)
        prompt = state.prompt.batch.prompt
        turned = self._turned(state.prompt, ran.columns)
        keys = self.adapter.keys(self.layers[index], ran.hidden, turned)  # (B H T E)
        flat = keys.transpose(1, 2).flatten(2)  # (B T H*E)
        # From rows to columns; fills and the answer's rows write to a spare last column.
        out = flat.new_zeros((flat.shape[0], prompt + 1, flat.shape[2]))
        slot = torch.where((ran.columns < 0) | (ran.columns >= prompt), prompt, ran.columns)
        return out.scatter(1, slot[..., None].expand(flat.shape), flat)[:, :prompt]

    def _turned(self, prompt: Prompt, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Position embeddings at these columns; at fills those of column 0."""
        cos, sin = prompt.positions
        place = columns.clamp(min=0)
        return take_rows(cos, place), take_rows(sin, place)

    def run_layer(self, ran: LayerInput, prompt: Prompt) -> Tensor:
        """The layer's output (B T D)."""
        columns = ran.columns
        filled = bool((columns < 0).any())
        mask = bias = None
        if ran.numbers is not None:  # all rows see the kept with their numbers, the answer's too
            bias = ran.numbers.biases(columns)
        if filled or bias is not None or not needless(self.backend, columns.shape[1], 0):
            dtype = ran.hidden.dtype
            mask = for_backend(self.backend, columns, columns, None, dtype, bias=bias)
        places = None
        # Flash attention would take gaps between the ids for the ends of packed sequences.
        if prompt.ids is not None and not self.backend.startswith("flash"):
            places = take_rows(prompt.ids, columns.clamp(min=0))
        out = self.layers[ran.layer](
            ran.hidden,
            attention_mask=mask,
            position_embeddings=self._turned(prompt, columns),
            position_ids=places,
            **prompt.extra,
        )
        self.tally.layers += len(columns)
        self.tally.rows += columns.numel()
        hidden: Tensor = out[0] if isinstance(out, tuple) else out
        return hidden


def _row_of_column(columns: Int[Tensor, "B T"], length: int) -> Int[Tensor, "B C"]:
    """The inverse of `columns`: in which row each of the first `length` columns lies.

    It is 0 for a column that lies in no row.
    """
    found = torch.zeros((len(columns), length + 1), dtype=torch.long, device=columns.device)
    rows = torch.arange(columns.shape[1], device=columns.device).expand_as(columns)
    # found[b, columns[b, r]] = r; fills write to a spare last column.
    found.scatter_(1, torch.where(columns < 0, length, columns), rows)
    return found[:, :length]


@dataclass(frozen=True)
class _Ranked(Score):
    """The runner's score at one state, from what other trials have found there."""

    runner: Runner
    state: Prefix

    def __call__(self, view: View, counts: Int[Tensor, B]) -> Float[Tensor, "B N"]:
        """As the runner's score."""
        return self.runner.ranked(self.state, view, counts)
