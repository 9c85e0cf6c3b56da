"""Configurations by name, path or hub id: what a model's cost can be told from without its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForImageTextToText

from ..files import read_text
from ..models.load import BUNDLED

_CLIP = {  # openai/clip-vit-large-patch14-336
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768,
}  # fmt: skip


def _llama(
    hidden: int, inner: int, layers: int, heads: int, groups: int, words: int, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": groups, "vocab_size": words,
        "max_position_embeddings": 32768, **more,
    }  # fmt: skip


def _llava(
    text: dict[str, Any], vision: dict[str, Any] = _CLIP, kind: str = "llava", **more: Any
) -> dict[str, Any]:
    size = {"image_token_index": 9, "vision_feature_layer": -2, **more}
    return {"model_type": kind, "text_config": text, "vision_config": vision, **size}


_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
_ONE_LAYER = _CLIP | {  # so that the decoder is what is timed
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip
_TINY_CLIP = _CLIP | {
    "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 224,
    "patch_size": 14,
}  # fmt: skip

SHAPES: dict[str, dict[str, Any]] = {  # sizes as in the models' published config.json; weights are nobody's
    "llava-1.5-7b": _llava(_llama(4096, 11008, 32, 32, 32, 32064)),
    "llava-1.5-13b": _llava(_llama(5120, 13824, 40, 40, 40, 32064)),
    "llava-next-7b": _llava(
        _llama(4096, 11008, 32, 32, 32, 32064), kind="llava_next", image_grid_pinpoints=_PINPOINTS
    ),
    "qwen2.5-vl-7b": {
        "model_type": "qwen2_5_vl",
        "image_token_id": 9, "video_token_id": 8, "vision_start_token_id": 7, "vision_end_token_id": 6,
        "text_config": {
            "model_type": "qwen2_5_vl_text", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
            "max_position_embeddings": 32768, "use_sliding_window": False,
            "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1000000.0},
        },
        "vision_config": {
            "model_type": "qwen2_5_vl", "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
            "out_hidden_size": 3584, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
        },
    },
    "internvl2-8b": {
        "model_type": "internvl", "image_token_id": 9, "downsample_ratio": 0.5,
        "text_config": _llama(4096, 14336, 32, 32, 8, 92553),
        "vision_config": {
            "model_type": "internvl_vision", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "image_size": [448, 448], "patch_size": [14, 14],
        },
    },
    "smol-135m": _llava(_llama(576, 1536, 30, 9, 3, 49152), _ONE_LAYER, vision_feature_layer=-1),
    "smol": _llava(_llama(576, 1536, 30, 9, 3, 49153, tie_word_embeddings=True), _TINY_CLIP, vision_feature_layer=-1),
    "tiny-20m": _llava(_llama(384, 1024, 12, 6, 2, 4096), _ONE_LAYER, vision_feature_layer=-1),
}  # fmt: skip


def config_of(name: str, layers: int | None = None) -> Any:
    """A configuration: of one of `SHAPES`, of a bundled model, of a ``config.json`` or its folder,
    or of a hub id.

    Args:
        name: which.
        layers: depth of the decoder, if it shall be another than the model's.

    Raises:
        ValueError: there is none, or it is not a vision-language model's.
    """
    config = _config_of(name)
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise ValueError(
            f"{name!r} is a {config.model_type} configuration, not a vision-language model's"
        )
    if layers is not None:
        text = config.get_text_config()
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = (list(text.layer_types) * layers)[:layers]
    return config


def _config_of(name: str) -> Any:
    if name in SHAPES:
        return _made(SHAPES[name])
    path = Path(BUNDLED["scenes"] if name == "scenes" else name)
    try:
        if path.is_file():
            return _made(json.loads(read_text(path)))
        return AutoConfig.from_pretrained(str(path))
    except (
        Exception
    ) as error:  # a damaged or foreign file fails in as many ways as there are readers
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        known = ", ".join([*SHAPES, "scenes"])
        raise ValueError(
            f"no configuration {name!r}: it is neither a known shape ({known}), nor a config.json or its folder, nor a "
            f"hub id within reach. transformers says: {first}"
        ) from error


def _made(body: dict[str, Any]) -> Any:
    kind = body.get("model_type")
    if kind is None:
        raise ValueError("the file names no model_type")
    return AutoConfig.for_model(kind, **{k: v for k, v in body.items() if k != "model_type"})
