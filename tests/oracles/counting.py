"""torch's own counter of FLOPs."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

CPU_SDPA = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def attention_flops(
    q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    """As torch's own, which refuses keys of fewer heads than queries before 2.13."""
    return int(sdpa_flop_count(q, [*k[:1], q[1], *k[2:]], [*v[:1], q[1], *v[2:]]))


def counted(run: Any) -> int:
    with (
        torch.no_grad(),
        FlopCounterMode(display=False, custom_mapping={CPU_SDPA: attention_flops}) as counter,
    ):
        run()
    return int(counter.get_total_flops())
