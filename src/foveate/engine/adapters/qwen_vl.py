"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: any resolution, positions in time, height and width (M-RoPE).

Positions come to the layers as rotations, ready-made from the original ones, so survivors keep theirs, and decode steps
go on from the model's own `rope_deltas`. Qwen3-VL adds features to the visual rows after the first layers (DeepStack):
the engine takes that over for the rows that are left.
"""

from __future__ import annotations

from .adapter import Adapter

ADAPTER = Adapter(
    model_types=("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"),
    image_token=lambda config: config.image_token_id,
    video_token=lambda config: config.video_token_id,
    structure="`<|vision_start|>`, `<|vision_end|>`, timestamps between the frames of a video",
    image="each picture; what stands between timestamps",
)
