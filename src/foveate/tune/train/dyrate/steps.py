"""The views that the engine would show at every step of an answer.

They come from one pass over the layers below the prune layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ....core.contract import Score
from ....core.method import Method
from ....core.tokens import TokenMap, classify
from ....core.view import View
from ....engine.anatomy import Anatomy
from ....engine.attention.rows import attention_rows
from ....engine.until import states_of, until
from ...tower_view import TowerReader, tower_watched
from .speaking import Cut, Held, speaks


@dataclass(frozen=True)
class Below:
    """What the layers below the prune layer leave.

    Attributes:
        last: what entered the last of them (B T D). Where there is none, below layer 0, it is what
            enters layer 0.
        hidden: what enters the prune layer (B T D).
        kwargs: the other arguments of the prune layer.
        look: `View.look` of the prompts.
    """

    last: Tensor
    hidden: Tensor
    kwargs: dict[str, Any]
    look: TowerReader | None


@torch.no_grad()
def run_below(anatomy: Anatomy, score: Score, layer: int, inputs: dict[str, Tensor]) -> Below:
    """Runs the layers below `layer`, and the tower, over prompts and answers."""
    visual = anatomy.visual(inputs["input_ids"])
    pruned = anatomy.layers[layer]
    last = anatomy.layers[max(0, layer - 1)]
    with until(pruned, last) as caught, tower_watched(anatomy, score) as reader_of:
        anatomy.model(**inputs, use_cache=False)
    _, kwargs = caught[pruned]
    return Below(
        last=states_of(caught[last]),
        hidden=states_of(caught[pruned]),
        kwargs=kwargs,
        look=reader_of(visual),
    )


def rows_at(values: Float[Tensor, "_ T D"], columns: Int[Tensor, "B R"]) -> Float[Tensor, "B R D"]:
    """The values (of every sample, or one for all) at some columns of each sample."""
    # gather needs one index for each number it takes: out[b, r, d] = values[b, columns[b, r], d].
    index = columns[..., None].expand(-1, -1, values.shape[-1])
    return values.expand(len(columns), -1, -1).gather(1, index)


class Steps:
    """The views that the engine would show at each step, from one pass over the layers below.

    Attributes:
        real: which columns are no padding (B T).
        total: visual tokens of each sample (B).
        columns: the columns of the visual tokens, ascending (B N).
        present: which entries of `columns` are tokens; samples with fewer have fills behind (B N).
        tokens: what every column of the prompt is.
        notes: as of `View`.
        attention_layer: the layer whose attention the views have: the one before the prune layer,
            or layer 0.
        cached: keys of that layer, at every column, and its numbers.
    """

    def __init__(
        self, anatomy: Anatomy, layer: int, inputs: dict[str, Tensor], prompt: int, below: Below
    ) -> None:
        self.layer = layer
        self.prompt = prompt
        self.below = below
        self.anatomy = anatomy
        self.adapter = anatomy.adapter
        self.layers = anatomy.layers
        config = anatomy.config
        real = inputs["attention_mask"].bool()
        ids = inputs["input_ids"]
        visual = anatomy.visual(ids)
        per_image = self.adapter.per_image(config)
        grid = self.adapter.grid(config)
        tokens = classify(visual[:, :prompt], real[:, :prompt], per_image=per_image, grid=grid)
        self.tokens = tokens
        self.real = real
        self.total = visual.sum(1)
        most = int(self.total.max())
        # A stable sort brings the visual columns to the front, in their order.
        self.columns = (~visual).long().argsort(dim=1, stable=True)[:, :most]
        self.present = torch.arange(most, device=ids.device) < self.total[:, None]
        self.notes: dict[str, Tensor] = {}
        self.attention_layer = max(0, layer - 1)
        module = self.layers[self.attention_layer]
        keys = self.adapter.keys(module, below.last, below.kwargs["position_embeddings"])
        self.cached = Held((keys,), None)

    def tokens_at(self, step: int) -> TokenMap:
        """What every column is at `step`."""
        return self.tokens.with_responses(self.prompt + step)

    def held(self, alive: Bool[Tensor, "B N"], columns: int) -> Bool[Tensor, "B C"]:
        """Which of the first `columns` columns the `attention_layer` still has in its cache.

        A layer below the prune layer has all that are no padding. Layer 0, where it is the prune
        layer itself, has lost what was dropped.
        """
        if self.layer:
            return self.real[:, :columns]
        # scatter clears the columns of dropped tokens; all else writes to a spare last column.
        gone = torch.where(self.present & ~alive, self.columns, self.real.shape[1])
        return F.pad(self.real, (0, 1)).scatter(1, gone, False)[:, :columns]

    def attend(self, tokens: TokenMap, alive: Tensor, index: int, queries: Tensor) -> Tensor:
        """Attention (B H Q C) of the `attention_layer`, from some columns to all columns so far.

        Args:
            tokens: what the columns so far are.
            alive: which visual tokens are (B N).
            index: the layer.
            queries: the columns that look (B Q), -1 at fills, whose rows are zeros.

        Raises:
            ValueError: the layer is not the one whose keys are at hand.
        """
        if index != self.attention_layer:
            raise ValueError(
                "training ranks by the layer before the prune layer; "
                "this ranking looks further back"
            )
        columns = tokens.kind.shape[1]
        module: Any = self.layers[index]
        place = queries.clamp(min=0)  # a fill takes column 0, and `allowed` leaves it out again
        cos, sin = self.below.kwargs["position_embeddings"]
        turned = (rows_at(cos, place), rows_at(sin, place))
        asked = self.adapter.queries(module, rows_at(self.below.last, place), turned)  # (B H Q E)
        before = torch.arange(columns, device=queries.device) <= queries[..., None]  # (B Q C)
        allowed = before & self.held(alive, columns)[:, None] & (queries >= 0)[..., None]
        keys = self.cached.parts[0][:, :, :columns]
        numbers = self.cached.numbers
        bias = None if numbers is None else numbers.bias[:, :columns]
        return attention_rows(asked, keys, module.self_attn.scaling, allowed, bias=bias)

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
        if self.layer or not speaks(method) or bool((before == alive).all()):
            return
        if step:
            self.cached = self.cached.after(method, self.tokens, self.columns, before, alive)
            return
        turned = self.below.kwargs["position_embeddings"]
        keys = self.adapter.keys(self.layers[0], cut.hidden, turned)
        self.cached = Held((keys,), cut.numbers)

    def view(self, step: int, alive: Bool[Tensor, "B N"]) -> View:
        """What the engine shows before the prune layer at `step`."""
        tokens = self.tokens_at(step)
        prompt = self.prompt
        columns = torch.arange(prompt, device=alive.device).expand(len(alive), -1)  # (B P)
        if step == 0:  # the whole prompt runs
            running = slice(prompt)
            rows = torch.where(self.real[:, :prompt], columns, -1)
        else:  # the answer's word before the one to predict
            running = slice(prompt + step - 1, prompt + step)
            rows = torch.full_like(columns[:, :1], prompt + step - 1)
        return View(
            layer=self.layer,
            step=step,
            layers=len(self.layers),
            total=self.total,
            visual=torch.where(alive, self.columns, -1),
            mask=alive,
            hidden=self.below.hidden[:, running],
            rows=rows,
            tokens=tokens,
            attend=lambda index, queries: self.attend(tokens, alive, index, queries),
            notes=self.notes,
            look=None if step else self.below.look,
        )
