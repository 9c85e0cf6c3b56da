"""What a command is asked about: IMAGE... PROMPT, in which the prompt may come from anywhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.markup import escape
from typer.core import TyperCommand

from ..files import decoded, read_text
from ..models.images import names_file
from ..models.loaded import Loaded
from .output import errors


class DashedPrompt(TyperCommand):
    """A command that takes a word with a space in it for a prompt, even if the word begins with a dash."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts such a word behind --, where no option is looked for; the value of an option stays where it is."""
        valued = {
            name for one in self.params if not getattr(one, "is_flag", True) for name in one.opts
        }
        dashed = [
            at
            for at, word in enumerate(args)
            if word.startswith("-") and len(word.split()) > 1
            if word.partition("=")[0] not in valued and (at == 0 or args[at - 1] not in valued)
        ]
        if dashed and "--" not in args:
            kept = [word for at, word in enumerate(args) if at not in dashed]
            args = [*kept, "--", *(args[at] for at in dashed)]
        return super().parse_args(ctx, args)


def images_and_prompt(
    inputs: list[str], prompt: str | None = None, file: Path | None = None
) -> tuple[list[str], str]:
    """The images' names, and the prompt, of a command that takes IMAGE... PROMPT.

    Args:
        inputs: the words of the command line.
        prompt: given by an option; then all words are images.
        file: to read the prompt from, given by an option; likewise.

    Raises:
        ValueError: no image, no prompt or two prompts; or a prompt that cannot be read.
    """
    if prompt is not None and file is not None:
        raise ValueError("got --prompt and --prompt-file; give one of them")
    if prompt is not None:
        asked, paths = prompt, inputs
    elif file is not None:
        asked, paths = read_text(file), inputs
    else:
        *paths, last = inputs
        if not paths:
            raise ValueError(
                f"got {shortened(last)!r} alone; expected at least one image, then the prompt"
            )
        asked = _read(last)
    if not asked.strip():
        raise ValueError("the prompt is empty; expected a question about the images")
    return paths, asked


def _read(text: str) -> str:
    """The prompt of the last argument: of standard input, of a file, or the argument itself."""
    if text == "-":
        return decoded(sys.stdin.buffer.read(), "standard input")
    if text.startswith("@"):
        if not names_file(text[1:]):
            raise ValueError(
                f"there is no file {shortened(text[1:])!r} to read the prompt from; a prompt that begins with @ is "
                "given by --prompt"
            )
        return read_text(Path(text[1:]).expanduser())
    if names_file(text):
        raise ValueError(
            f"the last argument is the prompt, but {shortened(text)!r} is a file. Add a question; or give --prompt "
            "if that is the question, @FILE to read it from the file"
        )
    return text


def shown(image: str) -> str:
    """A picture's name in tables: of a file its last part."""
    return Path(image).name if names_file(image) else shortened(image)


def shortened(text: str, longest: int = 60) -> str:
    """The beginning of a long text, for an error."""
    return text if len(text) <= longest else f"{text[:longest]}... ({len(text)} characters)"


def warn_of_length(
    loaded: Loaded, pictures: list[Any], paths: list[str], asked: str, new: int
) -> None:
    """Says which part brought how many tokens, where prompt and answer are longer than the model was made for."""
    long = loaded.length(pictures, asked).too_long(new, [shown(path) for path in paths])
    if long is not None:
        errors.print(f"[yellow]warning:[/yellow] {escape(long)}.", highlight=False)
