"""Ovis2: visual words; indicator tokens between tiles have ids of their own."""

from __future__ import annotations

from .adapter import Adapter

ADAPTER = Adapter(
    model_types=("ovis2",),
    image_token=lambda config: config.image_token_id,
    structure="indicator tokens around a picture and between its tiles",
    image="each tile",
)
