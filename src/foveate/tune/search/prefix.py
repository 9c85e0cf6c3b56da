"""Where a search's trials stand between two layers."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ...engine.replay.replay import Standing
from ..train.dyrate.rollout import Batch


@dataclass(frozen=True)
class Prefix:
    """What enters a layer, for all trials that begin alike.

    Attributes:
        at: where the run stands.
        batch: prompts with their answers.
        keep: what the layers before kept.
        found: the ranking here, by the counts to keep, or by None where it is the same for all.
        noticed: what the ranking has noticed here, as `View.notes` has it, once it was asked.
    """

    at: Standing
    batch: Batch
    keep: tuple[float, ...] = ()
    found: dict[tuple[int, ...] | None, Tensor] = field(default_factory=dict)
    noticed: dict[str, Tensor] = field(default_factory=dict)

    @property
    def layer(self) -> int:
        """The layer about to run."""
        return self.at.layer

    @property
    def bytes(self) -> int:
        """Of the tensors that this state holds, its batch's inputs included.

        Rankings are left out: they come later.
        """
        held = (*self.at.tensors(), *self.at.taught.tensors(), *self.batch.inputs.values())
        several = {id(tensor): tensor for tensor in held}
        return sum(t.numel() * t.element_size() for t in several.values())
