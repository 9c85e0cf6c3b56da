"""The one handle: a model with its processor, and what a user's pictures and words are for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ..engine.adapters import Adapter
from ..engine.anatomy import Anatomy, anatomy_of
from . import prompts
from .images import open_image
from .lengths import Length, length
from .processors import pictures_only
from .prompts import Turn

Chat = tuple[Sequence[Any], str]  # pictures, and what is asked about them


@dataclass(frozen=True)
class Loaded:
    """A model and its processor. It unpacks in two: ``model, processor = foveate.load("scenes")``.

    Any `from_pretrained` objects can be wrapped: ``foveate.Loaded(model, processor)``.

    Attributes:
        model: of transformers, in evaluation mode.
        processor: the model's; a tokenizer, or None, for who gives prepared inputs.
        name: as it was asked for; else where the configuration says that the model is from.
        revision: of a hub id.
    """

    model: Any
    processor: Any = None
    name: str = ""
    revision: str | None = None

    def __post_init__(self) -> None:
        if not self.name:
            said = getattr(getattr(self.model, "config", None), "name_or_path", "")
            object.__setattr__(self, "name", said or type(self.model).__name__)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.processor))

    @property
    def anatomy(self) -> Anatomy:
        """The model's parts and their sizes, as they are now."""
        return anatomy_of(self.model)

    @property
    def adapter(self) -> Adapter:
        """What the engine must be told about the family; ValueError if there is none."""
        return self.anatomy.adapter

    @property
    def body(self) -> Any:
        """The module that merges picture features into the text and calls the decoder."""
        return self.anatomy.body

    @property
    def decoder(self) -> Any:
        """The language model's decoder, with its `layers`."""
        return self.anatomy.decoder

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return prompts.tokenizer_of(self.processor)

    @property
    def pictures_only(self) -> bool:
        """Whether the processor was built without its part for videos."""
        return pictures_only(self.processor)

    def prompt(
        self,
        images: Sequence[Any] | int,
        text: str,
        system: str | None = None,
        earlier: Sequence[Turn] = (),
    ) -> str:
        """The chat prompt of one user turn, after those before it, as text.

        Args:
            images: the pictures, or how many; they stand before the text.
            text: what the user says.
            system: what the system says; the chat template's own default if None.
            earlier: former turns, (user, assistant) each, to the first of which the pictures belong.

        Raises:
            ValueError: there is no processor, or its chat template refuses, as some do a system text.
        """
        if self.processor is None:
            raise ValueError(
                f"{self.name} has no processor here; give one: foveate.Loaded(model, processor)"
            )
        count = images if isinstance(images, int) else len(images)
        return prompts.prompt(self.processor, count, text, system, earlier)

    def inputs(
        self, images: Sequence[Any], text: str, system: str | None = None
    ) -> dict[str, Tensor]:
        """The model's inputs for one user turn, on its device and in its dtype.

        Args:
            images: pictures, as `open_image` takes them.
            text: what the user says.
            system: as in `prompt`.

        Raises:
            ValueError: a picture cannot be read, or the chat template refuses.
        """
        return self.encode([(images, text)], system)

    def length(self, images: Sequence[Any], text: str, system: str | None = None) -> Length:
        """How many tokens a prompt takes, and what brings them; nothing is run.

        Args:
            images: pictures, as `open_image` takes them.
            text: what the user says.
            system: as in `prompt`.

        Raises:
            ValueError: a picture cannot be read, there is no processor, or the chat template refuses.
        """
        pictures = [open_image(one) for one in images]
        self.prompt(pictures, text, system)  # refuses where there is no processor
        return length(self.model, self.processor, pictures, text, system)

    def encode(
        self,
        chats: Sequence[Chat],
        system: str | None = None,
        earlier: Sequence[Sequence[Turn]] | None = None,
    ) -> dict[str, Tensor]:
        """The model's inputs for several chats (B T), padded on the left, on its device and in its dtype.

        The tokenizer is left as it was.

        Args:
            chats: (pictures, text) each; pictures as `open_image` takes them.
            system: as in `prompt`.
            earlier: former turns of each chat, as in `prompt`; none if None.

        Raises:
            ValueError: a picture cannot be read, the chat template refuses, the tokenizer cannot pad, or something
                is not a list of pictures, or no text.
        """
        for images, text in chats:
            if isinstance(images, str | Path | Image.Image):
                raise ValueError(
                    f"got {type(images).__name__} for the pictures; expected a list of them, such as [picture]"
                )
            if not isinstance(text, str):
                raise ValueError(f"got {type(text).__name__} for the prompt; expected text")
        pictures = [[open_image(one) for one in images] for images, _ in chats]
        before = earlier or [()] * len(chats)
        texts = [
            self.prompt(len(images), text, system, turns)
            for (images, text), turns in zip(chats, before, strict=True)
        ]
        return self.moved(prompts.tensors(self.processor, pictures, texts))

    def moved(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Inputs on the model's device; floats in its dtype. What is no tensor stays."""
        return {
            k: v if not isinstance(v, Tensor)
            else v.to(self.model.device, self.model.dtype) if v.is_floating_point()
            else v.to(self.model.device)
            for k, v in inputs.items()
        }  # fmt: skip

    def decode(self, ids: Any) -> str:
        """The words of an answer's tokens, without special tokens and space around."""
        return str(self.processor.decode(ids, skip_special_tokens=True)).strip()
