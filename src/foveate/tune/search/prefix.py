"""Where a search's trials stand between two layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from ...core.tokens import TokenMap
from ...engine.cache.numbers import Numbers
from ..tower_view import TowerReader
from ..train.dyrate.rollout import Batch


@dataclass(frozen=True)
class LayerInput:
    """What a layer ran on.

    Attributes:
        layer: which.
        hidden: its input (B T D).
        columns: of its rows (B T), -1 at fills.
        numbers: for how many tokens each column speaks in it, or None where each speaks for itself.
    """

    layer: int
    hidden: Tensor
    columns: Tensor
    numbers: Numbers | None = None


@dataclass(frozen=True)
class Prefix:
    """What enters a layer. Tensors are never written to, so that many trials may start here.

    Attributes:
        layer: the layer about to run.
        hidden: its input, before anything is dropped there.
        columns: of the rows, ascending; -1 at fills. A column is a place in `Batch.inputs`.
        prompt: the batch's own facts.
        trail: the layers that ran last, as far as the ranking looks back.
        keep: what the layers before kept.
        notes: what the ranking has noticed so far, as `View.notes` has it.
        found: the ranking here, by the counts to keep, or by None where it is the same for all.
        numbers: for how many tokens each column speaks so far, or None where each speaks for itself.
    """

    layer: int
    hidden: Float[Tensor, "B T D"]
    columns: Int[Tensor, "B T"]
    prompt: Prompt
    trail: tuple[LayerInput, ...] = ()
    keep: tuple[float, ...] = ()
    notes: dict[str, Tensor] = field(default_factory=dict)
    found: dict[tuple[int, ...] | None, Tensor] = field(default_factory=dict)
    numbers: Numbers | None = None

    @property
    def bytes(self) -> int:
        """Of the tensors that this state holds, its batch's inputs included.

        Rankings are left out: they come later.
        """
        shared = (self.numbers, *(ran.numbers for ran in self.trail))
        several = {id(numbers): numbers for numbers in shared if numbers is not None}
        held = (
            self.hidden,
            *(ran.hidden for ran in self.trail),
            *(part for numbers in several.values() for part in (numbers.counts, numbers.bias)),
            *self.prompt.batch.inputs.values(),
        )
        return sum(t.numel() * t.element_size() for t in held)


@dataclass(frozen=True)
class Prompt:
    """A batch as its layers need it.

    Attributes:
        batch: prompts with their answers.
        tokens: what every prompt column is.
        total: visual tokens of each sample.
        positions: position embeddings of all columns, cosines and sines (b T E), b = 1 or B.
        ids: position ids (b T), if the layers get such.
        extra: further arguments of the layers.
        look: `View.look` of the prompts.
    """

    batch: Batch
    tokens: TokenMap
    total: Int[Tensor, B]
    positions: tuple[Tensor, Tensor]
    ids: Tensor | None
    extra: dict[str, Any]
    look: TowerReader | None = None


@dataclass
class Tally:
    """What was run.

    Attributes:
        layers: samples x layers.
        rows: samples x layers x tokens, fills included.
        towers: samples whose pictures went through the tower.
    """

    layers: int = 0
    rows: int = 0
    towers: int = 0
