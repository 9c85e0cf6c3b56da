"""Every family that the engine runs: ONE ENTRY EACH. Those with functions of their own are made in a file beside."""

from __future__ import annotations

from typing import Any

from . import aya_vision, gemma3, idefics, llava
from .adapter import Adapter


def _video(config: Any) -> int:
    """The id of video frames, where a configuration names one."""
    return int(config.video_token_id)


TABLE: tuple[Adapter, ...] = (
    # A resampler of 128 or 256 tokens an image before a mixture of experts.
    Adapter(model_types=("aria",)),
    # 576 tokens an image; the hybrid tower sees two resolutions and gives one set of tokens.
    Adapter(model_types=("deepseek_vl", "deepseek_vl_hybrid")),
    # Few tokens an image, from a convolutional tower (which needs timm).
    Adapter(model_types=("fast_vlm",)),
    # GLM-4.1V, 4.5V, 4.6V and GLM-OCR: any resolution, and M-RoPE on half of each head.
    # The frames of a video stand between image markers, and their tokens have the image's id.
    Adapter(
        model_types=("glm4v", "glm4v_moe", "glm46v", "glm_ocr"),
        video_token=_video,
        structure="`<|begin_of_image|>`, `<|end_of_image|>` and the like, timestamps",
        image="each picture, or frame of a video",
    ),
    # 256 tokens a page.
    Adapter(model_types=("got_ocr2",), structure="`<img>`, `</img>`"),
    # Each image, or tile of one, is resampled to a fixed number of tokens.
    Adapter(
        model_types=("idefics2",),
        structure="`<fake_token_around_image>`",
        image="each picture or tile, of which every latent may be dropped",
    ),
    # InternVL 2, 2.5 and 3: 448-pixel tiles of 256 tokens each, side by side.
    # Qianfan-OCR: the same tower and tiles before Qwen3.
    Adapter(
        model_types=("internvl", "qianfan_ocr"),
        structure="`<img>`, `</img>`",
        image="all tiles of a picture",
    ),
    # Janus (understanding): 576 tokens an image.
    Adapter(model_types=("janus",), structure="`<begin_of_image>`, `<end_of_image>`"),
    # A Pixtral tower, rows of merged patches without breaks, before Qwen3.
    Adapter(model_types=("lighton_ocr",)),
    # An overview and tiles, with a newline token after each row: the number depends on the image's shape.
    # Images that touch in the prompt, with no text between, count as one image for quotas.
    Adapter(
        model_types=("llava_next",),
        structure="a newline after each row of tiles",
        stays=False,
        image="overview and tiles of a picture",
    ),
    # Images as LLaVA-NeXT; a video's frames are pooled and follow one another without text.
    Adapter(
        model_types=("llava_next_video",),
        video_token=_video,
        structure="a newline after each row of tiles",
        stays=False,
        image="overview and tiles of a picture; all frames of a video",
    ),
    # Tiles as LLaVA-NeXT, or a video of pooled frames with one newline at its end.
    Adapter(
        model_types=("llava_onevision",),
        video_token=_video,
        structure="a newline after each row of tiles and after a video",
        stays=False,
        image="overview and tiles of a picture; all frames of a video",
    ),
    # Mistral Small 3.1 and its kin, with the Pixtral tower: rows of merged patches, as many as the picture has.
    Adapter(
        model_types=("mistral3",),
        structure="`[IMG_BREAK]` after each row, `[IMG_END]`",
        image="each row",
    ),
    # Visual words; indicator tokens between tiles have ids of their own.
    Adapter(
        model_types=("ovis2",),
        structure="indicator tokens around a picture and between its tiles",
        image="each tile",
    ),
    # PaliGemma 1 and 2: the image stands first, and the whole prompt sees itself both ways.
    Adapter(
        model_types=("paligemma",),
        per_image=llava.patches,
        grid=llava.patch_grid,
        own_masks=True,
        said=1,  # of type 0 is what sees both ways
        first_position=1,
        image="each picture",
    ),
    # Pooled tiles of 16 x 16 tokens, or frames of a video.
    Adapter(
        model_types=("perception_lm",),
        video_token=_video,
        image="all tiles of a picture; all frames of a video",
    ),
    # Qwen2-VL, Qwen2.5-VL and Qwen3-VL: any resolution, positions in time, height and width (M-RoPE). Positions come
    # to the layers as rotations, ready-made from the original ones, so survivors keep theirs, and decode steps go on
    # from the model's own `rope_deltas`. Qwen3-VL adds features to the visual rows after the first layers (DeepStack):
    # the engine takes that over for the rows that are left.
    Adapter(
        model_types=("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"),
        video_token=_video,
        structure="`<|vision_start|>`, `<|vision_end|>`, timestamps between the frames of a video",
        image="each picture; what stands between timestamps",
    ),
    # Any resolution, frames of a video with timestamps between.
    Adapter(
        model_types=("video_llama_3",),
        video_token=_video,
        structure="timestamps and commas between frames",
        image="each picture or frame",
    ),
    # An image has the class token beside its patches, and a video eight such frames.
    Adapter(
        model_types=("video_llava",),
        video_token=_video,
        structure="the class token of each frame",
        stays=False,
        image="each picture; all frames of a video",
    ),
    aya_vision.ADAPTER,
    gemma3.ADAPTER,
    idefics.ADAPTER,
    llava.ADAPTER,
)
