"""Families that `apply` refuses, and why; a test shows that each is refused."""

from __future__ import annotations

CROSS = "images are read by cross-attention layers, not as tokens of the sequence, so there is none to drop"
RECURRENT = "the decoder mixes in layers (linear attention, convolution or state space) through which a dropped "
RECURRENT += "token's neighbours would change, so dropping would not be masking"
PER_LAYER = "every decoder layer gets inputs of its own per token, which the engine does not gather"
CODES = "images are codes of the vocabulary, and no placeholder id tells them from text"

INNER = "run foveate.apply on the model inside it (`.module`), before or after wrapping"
WRAPPERS: dict[str, str] = {
    "DataParallel": "it copies the model to every device at each forward, and the copies would share one record of "
    "what was kept. Run one process per GPU (torchrun), or spread one model with device_map",
    "DistributedDataParallel": INNER,
    "FullyShardedDataParallel": INNER,
}
"""What wraps models from outside, by its class; each with what to do instead."""

REFUSED: dict[str, str] = {
    "mllama": CROSS,
    "idefics": CROSS,
    "florence2": "an encoder-decoder: images go into the encoder, and the decoder has no visual tokens",
    "blip-2": "its decoder (OPT or T5) is not of the form whose attention the engine can recompute",
    "instructblip": "its decoder (OPT or T5) is not of the form whose attention the engine can recompute",
    "kosmos-2": "its decoder is not of the form whose attention the engine can recompute",
    "qwen3_5": RECURRENT,
    "qwen3_5_moe": RECURRENT,
    "lfm2_vl": RECURRENT,
    "nemotron_h_omni": RECURRENT,
    "gemma3n": PER_LAYER,
    "gemma4": PER_LAYER,
    "llama4": "chunked attention and rotary embedding in complex numbers, on some layers only",
    "chameleon": CODES,
    "emu3": CODES,
    "granite4_vision": "its decoder adds visual features inside its own loop, at rows it counts itself",
    "phi4_multimodal": "queries, keys and values are one fused projection",
    "fuyu": "its decoder (Persimmon) has one fused projection of queries, keys and values",
}
