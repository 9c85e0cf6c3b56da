"""Idefics2: each image, or tile of one, is resampled to a fixed number of tokens."""

from __future__ import annotations

from .adapter import Adapter

ADAPTER = Adapter(
    model_types=("idefics2",),
    image_token=lambda config: config.image_token_id,
    structure="`<fake_token_around_image>`",
    image="each picture or tile, of which every latent may be dropped",
)
