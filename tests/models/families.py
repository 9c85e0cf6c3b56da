"""ONE ENTRY PER FAMILY: a tiny random-weight model of the real config class, and its pictures in a prompt.

Every family has pictures of two sizes ("a", "b") where it takes several, and videos ("v") where it takes any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import transformers as tf
from torch import Tensor

from models import configs
from models.pictures import (
    Pixels,
    concatenated,
    eight_frames,
    framed,
    in_frames,
    in_rows,
    in_video,
    merged,
    modality,
    patches,
    per_sample,
    pooled_tiles,
    sized,
    square,
    stamped,
    tiles,
)
from models.tiny import IMAGE, PAD, VIDEO


@dataclass(frozen=True)
class Family:
    """A family to be tested.

    Attributes:
        config: of the tiny model.
        picture: (kind, seed) -> what the model is given for it.
        ids: (kind, number of features) -> the tokens of the picture in a prompt.
        kinds: of pictures.
        extras: (ids) -> further inputs, one entry per token.
        join: puts the pictures of a batch together: per sample, a list.
        backends: attention implementations that the family's modules take.
        side: of the square grid that an image's tokens form, if all do.
    """

    config: Callable[[], Any]
    picture: Callable[[str, int], Pixels]
    ids: Callable[[str, int], list[int]] = lambda kind, count: (
        [VIDEO if kind == "v" else IMAGE] * count
    )
    kinds: str = "a"
    extras: Callable[[Tensor], Pixels] = lambda ids: {}
    join: Callable[[list[list[Pixels]]], Pixels] = field(default_factory=lambda: concatenated)
    backends: tuple[str, ...] = ("sdpa", "eager")
    side: int | None = None


FAMILIES: dict[str, Family] = {
    "qwen2_vl": Family(configs.qwen2_vl, patches(96), kinds="abv", extras=modality),
    "qwen2_5_vl": Family(configs.qwen2_5_vl, patches(96), kinds="abv", extras=modality),
    "llava_onevision": Family(configs.llava_onevision, tiles, kinds="abv"),
    "internvl": Family(configs.internvl, square(), framed),
    "qwen3_vl": Family(configs.qwen3_vl, patches(96), stamped, kinds="abv", extras=modality),
    "qwen3_vl_moe": Family(
        configs.qwen3_vl_moe, patches(96), stamped, kinds="abv", extras=modality
    ),
    "idefics3": Family(configs.idefics3, square(), framed, join=per_sample, side=2),
    "smolvlm": Family(configs.smolvlm, square(), framed, join=per_sample, side=2),
    "mistral3": Family(configs.mistral3, sized, in_rows, kinds="ab"),
    "gemma3": Family(
        configs.gemma3,
        square(),
        framed,
        extras=lambda ids: {"token_type_ids": (ids == IMAGE).long()},
        side=2,
    ),
    "paligemma": Family(
        configs.paligemma(1), square(), extras=lambda ids: {"token_type_ids": ids * 0}, side=4
    ),
    "paligemma2": Family(
        configs.paligemma(2),
        square(),
        extras=lambda ids: {"token_type_ids": ids * 0},
        backends=("eager",),
        side=4,
    ),
    "llava_pixtral": Family(configs.llava_pixtral, sized, in_rows, kinds="ab"),
    "llava_next": Family(configs.llava_next, tiles, kinds="ab"),
    "llava_next_video": Family(configs.llava_next_video, tiles, kinds="abv"),
    "video_llava": Family(configs.video_llava, eight_frames, kinds="av"),
    "idefics2": Family(configs.idefics2, square(), framed, join=per_sample),
    "glm4v": Family(configs.glm4v, patches(96), framed, kinds="ab", extras=modality),
    "glm46v": Family(configs.glm46v, patches(96), framed, kinds="ab", extras=modality),
    "glm4v_moe": Family(configs.glm4v_moe, patches(96), framed, kinds="ab", extras=modality),
    "glm_ocr": Family(configs.glm_ocr, patches(96), framed, kinds="ab", extras=modality),
    "glm4v_video": Family(configs.glm4v, patches(96), in_frames, kinds="v", extras=in_video),
    "ovis2": Family(configs.ovis2, square(), framed),
    "aria": Family(configs.aria, square()),
    "got_ocr2": Family(configs.got_ocr2, square(64), framed),
    "deepseek_vl": Family(configs.deepseek_vl, square()),
    "janus": Family(configs.janus, square(), framed),
    "lighton_ocr": Family(configs.lighton_ocr, sized, kinds="ab"),
    "qianfan_ocr": Family(configs.qianfan_ocr, square(), framed),
    "aya_vision": Family(configs.aya_vision, square(), framed),
    "cohere2_vision": Family(configs.cohere2_vision, square(), framed),
    "perception_lm": Family(configs.perception_lm, pooled_tiles, kinds="av"),
    "fast_vlm": Family(configs.fast_vlm, square()),
    "ministral3": Family(configs.ministral3, sized, in_rows, kinds="ab"),
    "video_llama_3": Family(configs.video_llama_3, merged, kinds="abv"),
}


def build(name: str, backend: str) -> Any:
    """A model whose attention is far from uniform, so that what is dropped matters."""
    torch.manual_seed(5)
    made = tf.AutoModelForImageTextToText.from_config(FAMILIES[name].config())
    with torch.no_grad():
        for part, p in made.named_parameters():
            if p.ndim > 1 and "visual.pos" not in part:
                p.mul_(8 if "q_proj" in part or "k_proj" in part or "embed_tokens" in part else 4)
    made.generation_config.eos_token_id = None
    made.generation_config.pad_token_id = PAD
    made = made.eval()
    made.set_attn_implementation({"text_config": backend})
    return made


@cache
def model(name: str, backend: str = "sdpa") -> Any:
    return build(name, backend)


@cache
def judge(name: str) -> Any:
    """The same weights in a model of its own: some keep state between calls."""
    return build(name, "eager")
