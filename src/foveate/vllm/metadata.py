"""Attention metadata for layers that hold fewer tokens, made by vLLM's own builders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from vllm.v1.attention.backend import CommonAttentionMetadata

Counts = npt.NDArray[np.int64]

BACKENDS = {
    "CPU_ATTN": "proven by the tests",
    "FLASH_ATTN": "written by its source, not run",
}
"""Backends whose builders make metadata of their own at every call, so that layers may have different ones."""


class Shortened:
    """Makes metadata and slots for the layers that follow a cut.

    A request's tokens that a layer holds lie in the first slots of the request's own blocks, in
    order. So block tables stay valid, and a layer only needs shorter lengths and other slots.

    Args:
        runner: vLLM's model runner.
        shares: number of requests in this step.
    """

    def __init__(self, runner: Any, shares: int) -> None:
        self.groups = {
            name: group
            for groups in runner.attn_groups
            for group in groups
            for name in group.layer_names
        }
        table = runner.input_batch.block_table[0]
        self.blocks = table.get_device_tensor(shares)
        self.block_size = table.block_size
        self.type = runner.seq_lens.dtype
        self.device = runner.device
        self.slots: torch.Tensor | None = None
        self.common: CommonAttentionMetadata | None = None
        self.made: dict[int, Any] = {}

    def change(self, rows: Counts, lengths: Counts, prefilling: npt.NDArray[np.bool_]) -> None:
        """Sets what the next layers run.

        Args:
            rows: of each request.
            lengths: tokens of each request that the layers hold, with those that run.
            prefilling: which requests run their prompt.
        """
        starts = np.concatenate([[0], np.cumsum(rows)])
        # The rows of a request are the last of its tokens: number j of them goes to place length - rows + j.
        owner = np.repeat(np.arange(len(rows)), rows)
        place = np.repeat(lengths - rows - starts[:-1], rows) + np.arange(starts[-1])
        whose, where = (torch.from_numpy(part).to(self.device) for part in (owner, place))
        block = self.blocks[whose, where // self.block_size].long()
        self.slots = block * self.block_size + where % self.block_size
        ends = torch.from_numpy(starts.astype(np.int32))
        held = torch.from_numpy(lengths.astype(np.int32))
        self.common = CommonAttentionMetadata(
            query_start_loc=ends.to(self.device),
            query_start_loc_cpu=ends,
            seq_lens=held.to(self.device, self.type),
            seq_lens_cpu_upper_bound=held,
            num_reqs=len(rows),
            num_actual_tokens=int(starts[-1]),
            max_query_len=int(rows.max()),
            max_seq_len=int(lengths.max()),
            block_table_tensor=self.blocks,
            slot_mapping=self.slots,
            is_prefilling=torch.from_numpy(prefilling),
        )
        self.made = {}

    def slots_of(self, request: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Gives the slots of a request's places 0, 1, ... in its own blocks."""
        blocks = self.blocks[request]

        def slots(places: torch.Tensor) -> torch.Tensor:
            return (
                blocks[places // self.block_size].long() * self.block_size
                + places % self.block_size
            )

        return slots

    def put(self, context: Any, name: str) -> None:
        """Gives the attention layer `name` its metadata and slots in vLLM's forward context."""
        group = self.groups[name]
        if id(group) not in self.made:
            self.made[id(group)] = group.build_metadata(self.common)
        context.attn_metadata[name] = self.made[id(group)]
        context.slot_mapping[name] = self.slots
