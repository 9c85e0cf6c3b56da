"""The processes that share one evaluation."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Processes:
    """This process among those that a launcher such as torchrun started; one where there is none.

    Attributes:
        index: of this process.
        count: of all.
        local: index on this machine.
    """

    index: int = 0
    count: int = 1
    local: int = 0

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            importlib.import_module("accelerate").PartialState().wait_for_everyone()

    def gather(self, rows: Sequence[Any]) -> list[Any]:
        """All processes' rows, at each of them."""
        if self.count == 1:
            return list(rows)
        return list(importlib.import_module("accelerate.utils").gather_object(list(rows)))

    def device(self, name: str) -> str:
        """This process's device: of "cuda", the GPU of its number."""
        return f"cuda:{self.local}" if name == "cuda" and self.count > 1 else name


def processes(device: str) -> Processes:
    """Who is here.

    Args:
        device: where the model will be, which says how processes talk to each other.

    Raises:
        ValueError: started by a launcher, but accelerate is not installed.
    """
    if not torch.distributed.is_torchelastic_launched():
        return Processes()
    if importlib.util.find_spec("accelerate") is None:
        raise ValueError("several processes need accelerate; pip install accelerate, or start one process")
    state = importlib.import_module("accelerate").PartialState(cpu=device == "cpu")
    return Processes(state.process_index, state.num_processes, state.local_process_index)
