"""The views that the engine would show at every step of an answer.

They come from one pass over the layers below the prune layer.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from ....core.method import Method
from ....core.tokens import Kind, TokenMap
from ....core.view import View
from ....engine.replay.replay import Replay, Standing
from .speaking import Cut, Held, speaks


class Steps:
    """The views that the engine would show at each step, from one pass over the layers below.

    Args:
        replay: with which the layers below were run.
        at: before the prune layer.

    Attributes:
        at: as given.
        columns: the columns of the visual tokens, ascending (B N).
        present: which entries of `columns` are tokens; samples with fewer have fills behind (B N).
        total: visual tokens of each sample (B).
        tokens: what every column of the prompt is.
        notes: as of `View`.
        ran: the layer whose attention the views have: the one before the prune layer, or layer 0.
        cached: keys of that layer, at every column, and its numbers.
    """

    def __init__(self, replay: Replay, at: Standing) -> None:
        self.at = at
        self.replay = replay
        self.prompt = at.taught.prompt
        self.adapter = replay.anatomy.adapter
        self.total = at.taught.total
        whole = at.taught.tokens
        self.tokens = replace(
            whole, kind=whole.kind[:, : self.prompt], image=whole.image[:, : self.prompt]
        )
        visual = whole.are(Kind.IMAGE)
        most = int(self.total.max())
        # A stable sort brings the visual columns to the front, in their order.
        self.columns = (~visual).long().argsort(dim=1, stable=True)[:, :most]
        self.present = torch.arange(most, device=visual.device) < self.total[:, None]
        self.notes: dict[str, Tensor] = {}
        self.ran = at.trail[-1] if at.layer else at.coming
        self.cached = Held((self.ran.keys(self.adapter),), None)

    @property
    def real(self) -> Bool[Tensor, "B T"]:
        """Which columns are no padding."""
        return self.at.taught.real

    def tokens_at(self, step: int) -> TokenMap:
        """What every column is at `step`."""
        return self.tokens.with_responses(self.prompt + step)

    def held(self, alive: Bool[Tensor, "B N"], columns: int) -> Int[Tensor, "B C"]:
        """The first `columns` columns, as far as the layer `ran` still has them in its cache; else
        -1.

        A layer below the prune layer has all that are no padding. Layer 0, where it is the prune
        layer itself, has lost what was dropped.
        """
        there = self.real
        if not self.at.layer:
            # scatter clears the columns of dropped tokens; all else writes to a spare last column.
            gone = torch.where(self.present & ~alive, self.columns, there.shape[1])
            there = F.pad(there, (0, 1)).scatter(1, gone, False)
        every = torch.arange(columns, device=there.device)
        return torch.where(there[:, :columns], every, -1)

    def attend(self, tokens: TokenMap, alive: Tensor, index: int, queries: Tensor) -> Tensor:
        """Attention (B H Q C) of the layer `ran`, from some columns to all columns so far.

        Args:
            tokens: what the columns so far are.
            alive: which visual tokens are (B N).
            index: the layer.
            queries: the columns that look (B Q), -1 at fills, whose rows are zeros.

        Raises:
            ValueError: the layer is not the one whose keys are at hand.
        """
        if index != self.ran.index:
            raise ValueError(
                "training ranks by the layer before the prune layer; "
                "this ranking looks further back"
            )
        columns = tokens.kind.shape[1]
        asked = self.ran.queries(self.adapter, queries, self.real.shape[1])  # (B H Q E)
        keys = self.cached.parts[0][:, :, :columns]
        ran = replace(self.ran, numbers=self.cached.numbers)
        return ran.attention(asked, queries, keys, self.held(alive, columns), None, columns)

    def hand_over(
        self,
        method: Method,
        cut: Cut,
        step: int,
        before: Bool[Tensor, "B N"],
        alive: Bool[Tensor, "B N"],
    ) -> None:
        """Notes that tokens have left before `step`: the kept may speak for them from then on.

        A layer below the prune layer loses none. Layer 0, where it is the prune layer itself, has
        its own cache cut: its keys and numbers change as they will where it runs (see `speaking`).

        Args:
            method: with the weights and the merge.
            cut: what the prefill's cut left.
            step: the step about to run.
            before: the visual tokens alive so far.
            alive: those that stay.
        """
        if self.at.layer or not speaks(method) or bool((before == alive).all()):
            return
        if step:
            self.cached = self.cached.after(method, self.tokens, self.columns, before, alive)
            return
        cut_layer = replace(self.ran, hidden=cut.hidden)
        self.cached = Held((cut_layer.keys(self.adapter),), cut.numbers)

    def view(self, step: int, alive: Bool[Tensor, "B N"]) -> View:
        """What the engine shows before the prune layer at `step`."""
        tokens = self.tokens_at(step)
        prompt = self.prompt
        seen = self.at.taught.tower_outputs
        columns = torch.arange(prompt, device=alive.device).expand(len(alive), -1)  # (B P)
        if step == 0:  # the whole prompt runs
            running = slice(prompt)
            rows = torch.where(self.real[:, :prompt], columns, -1)
        else:  # the answer's word before the one to predict
            running = slice(prompt + step - 1, prompt + step)
            rows = torch.full_like(columns[:, :1], prompt + step - 1)
        return View(
            layer=self.at.layer,
            step=step,
            layers=len(self.replay.layers),
            total=self.total,
            visual=torch.where(alive, self.columns, -1),
            mask=alive,
            hidden=self.at.hidden[:, running],
            rows=rows,
            tokens=tokens,
            attend=lambda index, queries: self.attend(tokens, alive, index, queries),
            notes=self.notes,
            look=None if step or seen is None else seen.look,
        )
