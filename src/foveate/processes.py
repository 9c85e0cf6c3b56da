"""The processes that share one piece of work: an evaluation, a search or a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """This process among those that a launcher such as torchrun started; one where there is none.

    Attributes:
        index: of this process. The first is 0.
        count: of all.
        local: index on this machine.
    """

    index: int = 0
    count: int = 1
    local: int = 0

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()

    def gather(self, mine: Any) -> list[Any]:
        """What every process brings, by index; the same list at each of them."""
        if self.count == 1:
            return [mine]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, mine)
        return found

    def of_first(self, mine: Any) -> Any:
        """What the first process brings, so that all decide alike."""
        if self.count == 1:
            return mine
        found = [mine]
        dist.broadcast_object_list(found, src=0)
        return found[0]

    def mean(self, mine: Tensor) -> Tensor:
        """The mean of the tensors that the processes bring, all of one shape; the same at each of them."""
        if self.count == 1:
            return mine
        total = mine.clone()
        dist.all_reduce(total)  # a sum
        return total / self.count

    def device(self, name: str) -> str:
        """This process's device: of "cuda", the GPU of its number."""
        return f"cuda:{self.local}" if name == "cuda" and self.count > 1 else name


ALONE = Processes()


def launched() -> Processes:
    """The processes of torchrun, which talk over gloo, wherever their models are; one without a launcher."""
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        return ALONE
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return Processes(dist.get_rank(), dist.get_world_size(), dist.get_node_local_rank(0))
