"""GOT-OCR 2: 256 tokens a page, between `<img>` and `</img>`."""

from __future__ import annotations

from .adapter import Adapter

ADAPTER = Adapter(
    model_types=("got_ocr2",),
    image_token=lambda config: config.image_token_id,
    structure="`<img>`, `</img>`",
)
