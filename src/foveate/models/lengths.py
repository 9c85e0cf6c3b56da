"""How many tokens a prompt takes, and what brings them; told without running the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ..engine.adapters import adapter_for
from . import prompts


@dataclass(frozen=True)
class Length:
    """The tokens of one prompt.

    Attributes:
        words: of what the user says.
        frame: other text: the chat template, the system's text, marks around and between pictures.
        pictures: visual tokens of each picture; None where a picture makes other tokens beside
            others than alone.
        visual: of all pictures.
        grids: (rows, columns) of patches of each picture, where the processor states them.
        most: that the language model was made for; None if its configuration does not say.
    """

    words: int
    frame: int
    pictures: tuple[int, ...] | None
    visual: int
    grids: tuple[tuple[int, int], ...] = ()
    most: int | None = None

    @property
    def text(self) -> int:
        """Tokens that are not visual."""
        return self.words + self.frame

    @property
    def total(self) -> int:
        """All tokens of the prompt."""
        return self.text + self.visual

    def too_long(self, new: int, names: Sequence[str] = ()) -> str | None:
        """What to say if prompt and answer are longer than the model was made for; None if they are not.

        Args:
            new: tokens of the answer.
            names: of the pictures.
        """
        if self.most is None or self.total + new <= self.most:
            return None
        each = ""
        if self.pictures is not None and len(self.pictures) > 1:
            named = list(names) or [f"picture {n}" for n in range(1, len(self.pictures) + 1)]
            parts = zip(named, self.pictures, strict=True)
            each = " (" + ", ".join(f"{name} {count:,}" for name, count in parts) + ")"
        return (
            f"the prompt has {self.total:,} tokens: {self.visual:,} of pictures{each}, {self.words:,} of your text and "
            f"{self.frame:,} of the chat template. With {new:,} new ones that is more than the {self.most:,} that the "
            "model was made for. Give smaller or fewer pictures, a shorter prompt or a shorter answer"
        )


def length(
    model: Any,
    processor: Any,
    pictures: Sequence[Image.Image],
    text: str,
    system: str | None = None,
) -> Length:
    """Counts the tokens of one prompt, by its processor alone.

    Args:
        model: only its configuration is looked at, so that one without weights will do.
        processor: the model's.
        pictures: RGB.
        text: what the user says.
        system: as in `prompts.prompt`.

    Raises:
        ValueError: the family has no adapter, or the chat template refuses.
    """
    config = model.config
    visual = torch.tensor(adapter_for(model).visual_tokens(config))

    def made(some: Sequence[Image.Image]) -> dict[str, Any]:
        asked = prompts.prompt(processor, len(some), text, system)
        return prompts.tensors(processor, [list(some)], [asked])

    def seen(inputs: dict[str, Any]) -> int:
        return int(torch.isin(inputs["input_ids"], visual).sum())

    whole = made(pictures)
    total = seen(whole)
    alone = (total,) if len(pictures) == 1 else tuple(seen(made([one])) for one in pictures)
    tokenizer = prompts.tokenizer_of(processor)
    words = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    grids = whole.get("image_grid_thw", torch.zeros(0, 3, dtype=torch.long))
    return Length(
        words,
        whole["input_ids"].numel() - total - words,
        alone if sum(alone) == total else None,
        total,
        tuple((int(rows), int(columns)) for _, rows, columns in grids.tolist()),
        getattr(config.get_text_config(), "max_position_embeddings", None),
    )
