"""The one chat prompt: text by the family's chat template, or plainly where it has none; and the model's inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jinja2 import TemplateError
from PIL import Image
from torch import Tensor

Turn = tuple[str, str]  # what the user said, and what the model answered
FRAMES = {  # marks that a family's chat template writes around a picture's token
    "<|image_pad|>": ("<|vision_start|>", "<|vision_end|>"),
    "<|image|>": ("<|begin_of_image|>", "<|end_of_image|>"),
}
_BARE = ("PaliGemmaProcessor",)  # they take the pictures, then the text, and no chat
_FLAT = (
    "GotOcr2Processor",
)  # they take the pictures of a batch one after another; others, sample by sample


def tokenizer_of(processor: Any) -> Any:
    """The processor's tokenizer; a tokenizer that stands alone is its own."""
    return getattr(processor, "tokenizer", None) or processor


def prompt(
    processor: Any, images: int, text: str, system: str | None = None, earlier: Sequence[Turn] = ()
) -> str:
    """The text of a chat that ends where the model's answer begins.

    By the processor's chat template, else its tokenizer's; a template that knows no pictures gets their tokens as
    text. Without a template it is LLaVA-1.5's ``USER: <image> text ASSISTANT:``, for PaliGemma ``<image>text``.

    Args:
        processor: the model's.
        images: number of pictures; they stand before the text of the first turn.
        text: what the user says last.
        system: what the system says; the template's own default if None.
        earlier: former turns, the oldest first.

    Raises:
        ValueError: the chat template refuses, as some do a system text.
    """
    asked = [*(said for said, _ in earlier), text]
    for owner in dict.fromkeys((processor, tokenizer_of(processor))):
        template = getattr(owner, "chat_template", None)
        if template:
            messages = _messages(
                _marker(processor), images, asked, system, earlier, parts=_knows_pictures(template)
            )
            try:
                return str(
                    owner.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
                )
            except TemplateError as error:
                raise ValueError(
                    f"the chat template of {type(owner).__name__} refuses this chat: {error}"
                ) from error
    marks = _marker(processor)
    if type(processor).__name__ in _BARE:
        return marks * images + "\n".join(
            [*([system] if system else []), *(s for t in earlier for s in t), text]
        )
    first = f"{marks} " * images
    turns = [f"USER: {first if i == 0 else ''}{said} ASSISTANT:" for i, said in enumerate(asked)]
    whole = " ".join(f"{turn} {answer}" for turn, (_, answer) in zip(turns, earlier, strict=False))
    return " ".join(part for part in (system, whole, turns[-1]) if part)


def _messages(
    marks: str,
    images: int,
    asked: Sequence[str],
    system: str | None,
    earlier: Sequence[Turn],
    parts: bool,
) -> list[dict[str, Any]]:
    """The chat as templates take it: contents as lists of parts, or as texts with the pictures' tokens in them."""

    def content(text: str, pictures: int = 0) -> Any:
        if parts:
            return [*({"type": "image"} for _ in range(pictures)), {"type": "text", "text": text}]
        return f"{marks}\n" * pictures + text

    found = [] if system is None else [{"role": "system", "content": content(system)}]
    for number, said in enumerate(asked):
        found.append({"role": "user", "content": content(said, images if number == 0 else 0)})
        if number < len(earlier):
            found.append({"role": "assistant", "content": content(earlier[number][1])})
    return found


def _knows_pictures(template: Any) -> bool:
    """Whether a chat template writes pictures itself; those for text alone take contents that are texts."""
    return "image" in str(template)


def _marker(processor: Any) -> str:
    """What stands for one picture in a prompt; the processor makes as many tokens of it as the picture needs."""
    placed = getattr(processor, "image_placeholder_token", None)
    token = str(placed or getattr(processor, "image_token", None) or "<image>")
    before, after = FRAMES.get(token, ("", ""))
    known = tokenizer_of(processor).get_vocab() if before else {}
    return f"{before}{token}{after}" if before in known and after in known else token


def tensors(
    processor: Any, pictures: Sequence[Sequence[Image.Image]], texts: Sequence[str]
) -> dict[str, Tensor]:
    """The model's inputs for prompts with their pictures, padded on the left.

    What is only for training is left out: PaliGemma's processor adds labels, and the model then
    wants the logits of every token.

    Raises:
        ValueError: prompts of different lengths, and the tokenizer has neither a padding nor an end-of-sequence token.
    """
    given: Any = [list(some) for some in pictures]
    if type(processor).__name__ in _FLAT:
        given = [one for some in given for one in some]
    if not any(pictures):
        given = None
    with _padded_left(tokenizer_of(processor), len(texts) > 1) as padding:
        made = processor(images=given, text=list(texts), return_tensors="pt", **padding)
    return {name: value for name, value in made.items() if name != "labels"}


@contextmanager
def _padded_left(tokenizer: Any, several: bool) -> Iterator[dict[str, bool]]:
    """The options for padding on the left. The tokenizer is as it was afterwards.

    Where it has no padding token, the end-of-sequence token takes its place meanwhile: the attention mask hides it.
    """
    if not several:
        yield {}
        return
    side = tokenizer.padding_side
    pad = tokenizer.pad_token
    if pad is None and tokenizer.eos_token is None:
        raise ValueError(
            "the tokenizer has neither a padding nor an end-of-sequence token, so prompts of different lengths cannot "
            "be one batch; set processor.tokenizer.pad_token, or use batches of one"
        )
    tokenizer.padding_side = "left"
    if pad is None:
        tokenizer.pad_token = tokenizer.eos_token
    try:
        yield {"padding": True}
    finally:
        tokenizer.padding_side = side
        if pad is None:
            tokenizer.pad_token = None
