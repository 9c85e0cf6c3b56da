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


def products(a: Any, b: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """As torch's own of batches (B M K) x (B K N), without outer products, where K is 1.

    Older transformers write the angles of rotations so, newer ones as a plain multiplication; nobody counts these.
    """
    batch, rows, inner = a
    return 0 if inner == 1 else 2 * batch * rows * inner * b[-1]


MAPPING = {CPU_SDPA: attention_flops, torch.ops.aten.bmm: products}


def counted(run: Any) -> int:
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=MAPPING) as counter:
        run()
    return int(counter.get_total_flops())
