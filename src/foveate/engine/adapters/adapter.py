"""What the engine must be told about a family; everything else is the same for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..attention.rows import project_keys, project_queries


@dataclass(frozen=True)
class Adapter:
    """A family of models.

    Attributes:
        model_types: transformers' `config.model_type` values.
        image_token: the id of visual tokens in `input_ids`, from the model's configuration.
        per_image: visual tokens of every image where the configuration fixes them, else None.
        grid: (rows, columns) of every image's tokens in raster order, or None where they form no such grid.
        queries: post-RoPE query rows (B H Q D) of a decoder layer's attention, from the layer's input.
        keys: post-RoPE keys (B H T D), likewise; asked only where there is no cache.
        video_token: the id of the tokens of video frames, where it is another than the images'.
        own_masks: whether attention in a prompt is more than causal order and sliding windows, as where images see
            both ways.
        said: the token type of what the model says, where its inputs have types.
        first_position: of a prompt's first token. Attention hangs on distances alone, but scores may look at rotated
            keys.
        structure: what stands around and between an image's tokens; for the docs, as the next two.
        stays: whether these have ids of their own, and so are text that stays; else they are placeholders among the
            others, and may be dropped.
        image: what counts as one image where each gets its share.
    """

    model_types: tuple[str, ...]
    image_token: Callable[[Any], int] = lambda config: config.image_token_id
    per_image: Callable[[Any], int | None] = lambda config: None
    grid: Callable[[Any], tuple[int, int] | None] = lambda config: None
    queries: Callable[[nn.Module, Tensor, tuple[Tensor, Tensor]], Tensor] = project_queries
    keys: Callable[[nn.Module, Tensor, tuple[Tensor, Tensor]], Tensor] = project_keys
    video_token: Callable[[Any], int | None] = lambda config: None
    own_masks: bool = False
    said: int = 0
    first_position: int = 0
    structure: str = "none"
    stays: bool = True
    image: str = "each picture; those that touch are one"

    def visual_tokens(self, config: Any) -> tuple[int, ...]:
        """Ids of the placeholders of images and of video frames."""
        video = self.video_token(config)
        image = self.image_token(config)
        return (image,) if video is None or video == image else (image, video)
