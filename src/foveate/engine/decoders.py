"""Decoders for which the engine is proven right, by transformers' `model_type` of the language model.

A decoder is listed when the tests run it, and show that dropping equals masking and that recomputed attention rows are
the model's own (tests/oracles/test_families.py).
"""

from __future__ import annotations

PROVEN: tuple[str, ...] = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "qwen2_vl_text", "qwen2_5_vl_text",
    "qwen3_vl_text", "qwen3_vl_moe_text", "glm4v_text", "glm4v_moe_text", "glm_ocr_text", "aria_text", "cohere2",
    "ministral3",
)  # fmt: skip
