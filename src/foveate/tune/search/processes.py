"""The processes that search together: one, or those that torchrun launched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist


@dataclass(frozen=True)
class Processes:
    """`rank` of `world`, `local` on its machine. Batches are dealt out by number, so any number finds the same."""

    rank: int = 0
    world: int = 1
    local: int = 0

    def gather(self, mine: Any) -> list[Any]:
        """What every process brings, by rank."""
        if self.world == 1:
            return [mine]
        out: list[Any] = [None] * self.world
        dist.all_gather_object(out, mine)
        return out

    def of_first(self, mine: Any) -> Any:
        """What the first process brings: so that all decide alike."""
        if self.world == 1:
            return mine
        out = [mine]
        dist.broadcast_object_list(out, src=0)
        return out[0]


def launched() -> Processes:
    """The processes of torchrun, which then talk over gloo; one where there is no launcher."""
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        return Processes()
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return Processes(dist.get_rank(), dist.get_world_size(), dist.get_node_local_rank(0))
