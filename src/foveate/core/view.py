"""All that a decision may look at."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .tokens import TokenMap
from .tower import Tower

Projection = Literal["queries", "keys"]


def _uncounted(flops: float) -> None:
    """Where nobody keeps account."""


@dataclass(frozen=True)
class View:
    """The state just before layer `layer` runs at step `step`; step 0 is the prefill.

    Attributes:
        layer: the layer about to run, counted from 0.
        step: 0 in a prefill (each forward of several tokens is one), t >= 1 before decode step t.
        layers: depth of the decoder.
        total: visual tokens that each sample started with.
        visual: columns (see `TokenMap`) of the visual tokens still alive here, ascending; filled
            with -1.
        mask: which entries of `visual` are real.
        hidden: hidden states entering the layer.
        rows: columns of those hidden states; -1 where a row is only a fill.
        tokens: what every column is.
        attend: computes `attention`; given by the engine, absent where a schedule is costed without
            a model.
        cached: whether keys and values are cached; without a cache every step is a prefill of the
            whole input.
        notes: what scores and schedules remember of a conversation, (B C) over the columns of its
            time; see `note`.
        look: computes what `tower` gives; given by the engine where a score asks for the vision
            tower.
        spend: counts FLOPs that a decision costs, over all samples, as `torch.utils.flop_counter`
            would: of products of matrices. Attention rows are counted by the engine.
        recall: computes `keys`; given by the engine.
        project: computes what `projected` gives, for all rows; given by the engine.
        numbers: for how many tokens each entry of `visual` speaks here (see `weighing`); None: each
            for itself.
    """

    layer: int
    step: int
    layers: int
    total: Int[Tensor, B]
    visual: Int[Tensor, "B N"]
    mask: Bool[Tensor, "B N"]
    hidden: Float[Tensor, "B T D"]
    rows: Int[Tensor, "B T"]
    tokens: TokenMap
    attend: Callable[[int, Tensor], Tensor] | None = None
    cached: bool = True
    notes: dict[str, Tensor] = field(default_factory=dict)
    look: Callable[[Any, Any, Tensor], Tensor] | None = None
    spend: Callable[[float], None] = _uncounted
    recall: Callable[[int], Tensor] | None = None
    project: Callable[[Projection, bool], Tensor] | None = None
    numbers: Float[Tensor, "B N"] | None = None

    @property
    def alive(self) -> Int[Tensor, B]:
        """Visual tokens of each sample still alive before this layer."""
        return self.mask.sum(1)

    @cached_property
    def newest(self) -> Int[Tensor, "B 1"]:
        """Column of each sample's last real token: the last of the prompt, or the one being
        decoded.
        """
        return self.rows.amax(1, keepdim=True)

    def attention(self, queries: Int[Tensor, "B Q"], back: int = 1) -> Float[Tensor, "B H Q C"]:
        """Attention that an earlier layer paid, in float32, from the rows of `queries` to every
        column.

        Only these rows are computed, from the layer's input and its cached keys: the same numbers
        under eager, sdpa and flash attention. A column that layer no longer held has 0; a query of
        -1 gives zeros.

        Args:
            queries: columns among the rows that the layer has just run.
            back: how many layers back; more than 1 needs a score that announces it by `back` of its
                `Needs`. 0 is the layer about to run, what it will pay if nothing is dropped; its
                keys are projected for this alone.

        Raises:
            ValueError: there is no layer so far back, as at layer 0; or outside a model.
        """
        if self.layer < back:
            raise ValueError(
                f"layer {self.layer} has no layer {'' if back == 1 else f'{back} '}before it whose attention could "
                f"rank tokens; use layer >= {back}"
            )
        if self.attend is None:
            raise ValueError(
                "this view has no model behind it, so it has no attention; give the counts directly"
            )
        if queries is not self.newest:
            return self.attend(self.layer - back, queries)
        attend = self.attend  # features and scores both ask for it
        paid: Tensor = self.once(("newest", back), lambda: attend(self.layer - back, queries))
        return paid

    def keys(self) -> Float[Tensor, "B C K"]:
        """Keys of the layer before as its attention used them, rotated, heads side by side; 0 where
        it held none.

        Raises:
            ValueError: there is no layer before, as at layer 0; or outside a model.
        """
        if self.layer < 1 or self.recall is None:
            raise ValueError(
                f"layer {self.layer} has no layer before it whose keys could rank tokens; use layer >= 1"
            )
        return self.recall(self.layer - 1)

    def projected(self, which: Projection, rotated: bool) -> Float[Tensor, "B N H E"]:
        """Queries or keys of the alive visual tokens in the layer about to run; zeros where they do
        not run now.

        They are projected for this alone. Keys have fewer heads than queries where several share
        one.

        Args:
            which: "queries" or "keys".
            rotated: by the tokens' positions, or not at all.

        Raises:
            ValueError: outside a model.
        """
        project = self.project
        if project is None:
            raise ValueError(
                "this view has no layer behind it that could project queries or keys; use the method under "
                "foveate.apply"
            )
        rows: Tensor = self.once((which, rotated), lambda: project(which, rotated))  # (B R H E)
        place = self.place()
        index = place.clamp(min=0)[..., None, None].expand(*place.shape, *rows.shape[2:])
        return rows.to(place.device).gather(1, index) * (place >= 0)[..., None, None]

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """What `compute` gives, computed once for this view: what score, schedule and merge of a
        decision share.
        """
        if key not in self._shared:
            self._shared[key] = compute()
        return self._shared[key]

    @property
    def tower(self) -> Tower:
        """What the vision tower made of the alive visual tokens.

        Raises:
            ValueError: no score announced by `tower` of its `Needs` that it would look; no image
                comes with this forward, as in a decode step; or outside a model.
        """
        if self.look is None:
            raise ValueError(
                "this view has no vision tower behind it: no image comes with this forward, or no score said by "
                "`Needs(tower=...)` which of the tower's layers it looks at, or there is no model"
            )
        return Tower(self.look, self.visual)

    @cached_property
    def _shared(self) -> dict[Hashable, Any]:
        """What `once` has computed."""
        return {}

    def note(self, key: str) -> Float[Tensor, "B C"]:
        """What was last written under `key` in `notes`, zeros in the columns since; zeros if
        nothing was.

        Notes follow their samples through beam search. Columns that are cropped off lose theirs,
        but what the other columns' notes owe to a cropped step stays.
        """
        batch, columns = self.tokens.kind.shape
        known = self.notes.get(key)
        out = torch.zeros(batch, columns, device=self.tokens.kind.device, dtype=torch.float32)
        if known is not None:
            out[:, : known.shape[1]] = known[:, :columns]
        return out

    def on_columns(self, values: Float[Tensor, "B N"]) -> Float[Tensor, "B C"]:
        """Values of the alive visual tokens in their columns; 0 elsewhere.

        The inverse of `of_visual`.
        """
        # Fills are -1: they point at column 0 and add 0 there.
        out = torch.zeros(self.tokens.kind.shape, device=values.device, dtype=values.dtype)
        return out.scatter_add(1, self.visual.clamp(min=0), values * self.mask)

    def of_visual(self, values: Float[Tensor, "B *K C"]) -> Float[Tensor, "B *K N"]:
        """Picks the alive visual tokens' entries from values over all columns; 0 at fills."""
        shape = (
            values.shape[0],
            *([1] * (values.ndim - 2)),
            self.visual.shape[1],
        )  # (B 1... N), as `values` has axes
        index = self.visual.clamp(min=0).view(shape).expand(*values.shape[:-1], -1)
        return values.gather(-1, index) * self.mask.view(shape)

    def states(self, partial: bool = False) -> Float[Tensor, "B N D"]:
        """Hidden states of the alive visual tokens (zeros at fills).

        Args:
            partial: give zeros for tokens of earlier turns, which are only in the cache, in place
                of raising.

        Raises:
            ValueError: some of them are not among the rows that run now, as in a decode step.
        """
        place = self.place()
        if not partial and bool(((place < 0) & self.mask).any()):
            raise ValueError(
                "visual tokens of earlier steps have no hidden state now; ask in the prefill (step 0)"
            )
        index = place.clamp(min=0)[..., None].expand(-1, -1, self.hidden.shape[-1])
        return self.hidden.gather(1, index) * (place >= 0)[..., None]

    def place(self) -> Int[Tensor, "B N"]:
        """Index into `hidden`'s rows of each alive visual token; -1 where it is not among them."""
        batch, columns = self.tokens.kind.shape
        # A table from columns to rows, with one more column at its end, into which rows that are
        # fills are written.
        where = torch.full((batch, columns + 1), -1, dtype=torch.long, device=self.rows.device)
        numbers = torch.arange(self.rows.shape[1], device=self.rows.device).expand_as(self.rows)
        where.scatter_(1, torch.where(self.rows < 0, columns, self.rows), numbers)
        return torch.where(self.mask, where.gather(1, self.visual.clamp(min=0)), -1)
