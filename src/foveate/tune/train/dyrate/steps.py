"""The views that the engine would show at every step of an answer, from one pass over the layers below."""

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
from ...tower_view import Look, watched
from .speaking import Cut, Held


@dataclass(frozen=True)
class Below:
    """What the layers below the prune layer leave: inputs (B T D) of the last of them and of the prune layer.

    Before layer 0, where there is none, `last` is what enters layer 0 too. `look` is `View.look` of the prompts.
    """

    last: Tensor
    hidden: Tensor
    kwargs: dict[str, Any]
    look: Look | None


@torch.no_grad()
def run_below(anatomy: Anatomy, score: Score, layer: int, inputs: dict[str, Tensor]) -> Below:
    """Runs the layers below `layer`, and the tower, over prompts and answers."""
    visual = anatomy.visual(inputs["input_ids"])
    pruned = anatomy.layers[layer]
    last = anatomy.layers[max(0, layer - 1)]
    with until(pruned, last) as caught, watched(anatomy, score) as look:
        anatomy.model(**inputs, use_cache=False)
    states, kwargs = states_of(caught[pruned]), caught[pruned][1]
    return Below(states_of(caught[last]), states, kwargs, look(visual))


def rows_at(values: Float[Tensor, "_ T D"], columns: Int[Tensor, "B R"]) -> Float[Tensor, "B R D"]:
    """The values (of every sample, or one for all) at some columns of each sample."""
    index = columns[..., None].expand(-1, -1, values.shape[-1])
    return values.expand(len(columns), -1, -1).gather(1, index)


class Steps:
    """The views that the engine would show at each step, from one pass over the layers below."""

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
        self.columns = (~visual).long().argsort(dim=1, stable=True)[:, :most]  # (B N)
        self.present = torch.arange(most, device=ids.device) < self.total[:, None]
        self.notes: dict[str, Tensor] = {}
        self.asked = max(0, layer - 1)
        module = self.layers[self.asked]
        keys = self.adapter.keys(module, below.last, below.kwargs["position_embeddings"])
        self.held = Held((keys,), None)

    def tokens_at(self, step: int) -> TokenMap:
        """What every column is at `step`."""
        return self.tokens.with_responses(self.prompt + step)

    def holds(self, alive: Bool[Tensor, "B N"], columns: int) -> Bool[Tensor, "B C"]:
        """Of the columns so far, those that the layer asked for attention has: layer 0's own cache is cut, too."""
        if self.layer:
            return self.real[:, :columns]
        dead = torch.where(self.present & ~alive, self.columns, self.real.shape[1])
        return F.pad(self.real, (0, 1)).scatter(1, dead, False)[:, :columns]

    def attend(self, tokens: TokenMap, alive: Tensor, index: int, queries: Tensor) -> Tensor:
        """Attention of the layer below, or of layer 0 itself, from some columns to all columns so far."""
        if index != self.asked:
            raise ValueError(
                "training ranks by the layer before the prune layer; this ranking looks further back"
            )
        columns = tokens.kind.shape[1]
        cos, sin = (
            rows_at(t, queries.clamp(min=0)) for t in self.below.kwargs["position_embeddings"]
        )
        module: Any = self.layers[index]
        asked = self.adapter.queries(
            module, rows_at(self.below.last, queries.clamp(min=0)), (cos, sin)
        )
        before = torch.arange(columns, device=queries.device) <= queries[..., None]
        allowed = before & self.holds(alive, columns)[:, None] & (queries >= 0)[..., None]
        keys = self.held.parts[0][:, :, :columns]
        numbers = self.held.numbers
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
        """Tells what is asked for attention that tokens have left before `step`.

        Layers below the prune layer lose none; but before layer 0 it is layer 0 itself that is asked, whose own cache
        is cut, and whose keys and numbers then change as they do where it runs (`speaking`).
        """
        if self.layer:
            return
        if step:
            self.held = self.held.after(method, self.tokens, self.columns, before, alive)
            return
        turned = self.below.kwargs["position_embeddings"]
        self.held = Held((self.adapter.keys(self.layers[0], cut.hidden, turned),), cut.numbers)

    def view(self, step: int, alive: Bool[Tensor, "B N"]) -> View:
        """What the engine shows before the prune layer at `step`."""
        tokens = self.tokens_at(step)
        prompt = self.prompt
        running = slice(prompt) if step == 0 else slice(prompt + step - 1, prompt + step)
        columns = torch.arange(prompt, device=alive.device).expand(len(alive), -1)
        rows = (
            torch.where(self.real[:, :prompt], columns, -1)
            if step == 0
            else columns[:, :1] * 0 + prompt + step - 1
        )
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
