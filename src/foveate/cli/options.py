"""Options that several commands share."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from PIL import Image

from ..artefacts.weighting import MERGES, WEIGHS
from ..core.scores import RANKINGS
from ..cost import plan
from ..methods import factories
from ..models.images import open_image
from ..models.load import BUNDLED
from ..world.draw import draw
from ..world.scenes import sample

RECOMMENDED = "divprune:keep=0.25,weigh=nearest,merge=mean"  # a quarter, which speaks for the rest

Json = Annotated[
    bool, typer.Option("--json", help="Print JSON on standard output, and nothing else.")
]
Device = Annotated[str, typer.Option(help="Device to run on, such as cpu or cuda:0.")]
Dtype = Annotated[str, typer.Option(help="Number format: auto, float32, bfloat16 or float16.")]
Repeats = Annotated[
    int, typer.Option(min=1, help="Number of timed runs per method; the median counts.")
]


def _named(*known: Iterable[str]) -> Callable[[str], list[str]]:
    """What a shell offers to complete a word with."""

    def offered(incomplete: str) -> list[str]:
        return [name for names in known for name in names if name.startswith(incomplete)]

    return offered


Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        autocompletion=_named(factories()),
        help="A method with its knobs, such as fastv:keep=0.5 (a share) or fastv:keep=64 (a number of tokens); "
        "`foveate methods` lists them. May be repeated.",
    ),
]
Model = Annotated[
    str,
    typer.Option(
        help="scenes or smol (bundled), a folder, or a hub id.", autocompletion=_named(BUNDLED)
    ),
]
ModelName = Annotated[
    str,
    typer.Argument(
        help="scenes or smol (bundled), a folder, or a hub id.", autocompletion=_named(BUNDLED)
    ),
]
Ranking = Annotated[
    str,
    typer.Option(
        "--ranking",
        help=f"Which tokens go first: {', '.join(RANKINGS)}; or a method, by its score.",
    ),
]
Weigh = Annotated[str, typer.Option(help=f"Whom dropped tokens join: {', '.join(WEIGHS)}.")]
Merge = Annotated[
    str,
    typer.Option(help=f"{' or '.join(MERGES)}: whether kept tokens become means of what joins."),
]
Strength = Annotated[float, typer.Option(help="With --weigh: the factor of log(n).")]
Place = Annotated[
    float | None, typer.Option(help="With --weigh mixed: how much nearness in the picture counts.")
]
Cutoff = Annotated[
    float | None,
    typer.Option(help="With --merge mean: the cosine below which a token is not averaged."),
]
Match = Annotated[
    str | None,
    typer.Option(
        help="Tune each method to equal work: flops=0.33 of the unpruned model's (or bytes=, tokens=). The knob is "
        "keep, or the one written as knob=?."
    ),
]
Also = Annotated[
    list[str] | None,
    typer.Option(
        "--also",
        help="A method to run as it is, in addition to those that --match tunes. May be repeated.",
    ),
]
PromptTokens = Annotated[
    int, typer.Option(min=1, help="Number of prompt tokens that are not visual.")
]
Images = Annotated[int, typer.Option(min=0, help="Number of pictures per sample.")]
ImageSize = Annotated[
    str | None,
    typer.Option(
        help="Size of each picture in pixels, such as 672x448, where the number of tokens depends on it."
    ),
]
Tiles = Annotated[
    int,
    typer.Option(
        min=1, help="Number of tiles per picture, where the processor decides (InternVL, Idefics3)."
    ),
]
VisualTokens = Annotated[
    int | None,
    typer.Option(
        min=0, help="Visual tokens per sample; overrides the count derived from the pictures."
    ),
]
OutputTokens = Annotated[int, typer.Option(min=1, help="Number of tokens to generate.")]
PictureFile = Annotated[
    Path, typer.Option(help="Write the picture to this .png, .svg or .pdf file.")
]
Batch = Annotated[int, typer.Option(min=1, help="Number of samples in the batch.")]
Layers = Annotated[
    int | None, typer.Option(min=1, help="Number of decoder layers; overrides the model's.")
]


@dataclass(frozen=True)
class Asked:
    """The options that say what a request is; `with_request` puts them on a command."""

    prompt_tokens: PromptTokens = 64
    images: Images = 1
    image_size: ImageSize = None
    tiles: Tiles = 1
    visual_tokens: VisualTokens = None
    output_tokens: OutputTokens = 128
    batch: Batch = 1

    def request(self, config: Any) -> plan.Request:
        """The request, of a configuration.

        Raises:
            ValueError: as `plan.request`, or an image size that is none.
        """
        return plan.request(
            config, text=self.prompt_tokens, images=self.images, new_tokens=self.output_tokens, batch=self.batch,
            size=size(self.image_size), tiles=self.tiles, visual=self.visual_tokens,
        )  # fmt: skip


def with_request(
    *without: str, **defaults: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of `Asked`, which it takes as one argument `asked`.

    Args:
        without: options that this command does not have.
        defaults: where they are not those of `Asked`.
    """
    hints = get_type_hints(Asked, include_extras=True)
    ours = [
        inspect.Parameter(
            f.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=defaults.get(f.name, f.default),
            annotation=hints[f.name],
        )
        for f in fields(Asked)
        if f.name not in without and f.default is not MISSING
    ]

    def put(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**given: Any) -> None:
            asked = Asked(**{p.name: given.pop(p.name) for p in ours})
            command(asked=asked, **given)

        theirs = inspect.signature(command, eval_str=True).parameters.values()
        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in theirs if p.name != "asked"]
        shown: Any = run
        shown.__signature__ = inspect.Signature([*own[:2], *ours, *own[2:]])
        shown.__annotations__ = {p.name: p.annotation for p in [*own, *ours]}
        return run

    return put


def size(text: str | None) -> tuple[int, int] | None:
    """Width and height from text like ``672x448``.

    Raises:
        ValueError: it is not of this form.
    """
    if text is None:
        return None
    wide, _, high = text.partition("x")
    if not (wide.isdecimal() and high.isdecimal() and int(wide) and int(high)):
        raise ValueError(f"image size {text!r}; expected width x height in pixels, like 672x448")
    return int(wide), int(high)


def writable(path: Path | None) -> None:
    """Raises ValueError if a file cannot be put there."""
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {path.parent}")


def check_picture(out: Path) -> None:
    """Raises ValueError if no picture can be written there."""
    if not out.parent.is_dir():
        raise ValueError(f"cannot write {out}: there is no folder {out.parent}")
    if out.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"cannot write {out}: expected a name that ends in .png, .svg or .pdf")


def check_page(out: Path) -> None:
    """Raises ValueError if no HTML page can be written there."""
    if out.suffix not in (".html", ".htm"):
        raise ValueError(f"cannot write {out}: expected a name that ends in .html")
    writable(out)
    if out.is_dir() or not os.access(out if out.exists() else out.parent, os.W_OK):
        raise ValueError(
            f"cannot write {out}: it is a folder, or this user may not write there; choose another path"
        )


def picture(name: str) -> Image.Image:
    """The picture of that name; of ``scene:N`` the held-out scene number N.

    Raises:
        ValueError: there is no such picture.
    """
    if name.startswith("scene:") and name.removeprefix("scene:").isdigit():
        return draw(sample("val", int(name.removeprefix("scene:")))).image
    return open_image(name)
