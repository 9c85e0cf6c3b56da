"""Mistral 3 and Mistral Small 3.1 with the Pixtral tower: rows of merged patches, as many as the picture has."""

from __future__ import annotations

from .adapter import Adapter

ADAPTER = Adapter(
    model_types=("mistral3",),
    image_token=lambda config: config.image_token_id,
    structure="the break after each row and the image's end stay, so each row of a picture is an image for quotas",
)
