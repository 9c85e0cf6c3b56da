"""The one place that opens pictures: whatever holds a picture becomes an upright 8-bit RGB image."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import unquote, unquote_to_bytes, urlsplit
from urllib.request import Request, url2pathname, urlopen

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

_PATIENCE = 30.0  # seconds for a web server to answer
_DEEP = {"I", "I;16", "I;16L", "I;16B", "I;16N", "F"}  # Pillow's modes of more than 8 bits
_TOP = 2**16 - 1  # white, of 16 bits
_KINDS = "a path, a URL (file, http, https), a data URI, base64, a PIL image, or an array (H W), (H W C) or (C H W)"


def open_image(source: Any) -> Image.Image:
    """The picture in RGB, 8 bits, upright.

    The EXIF orientation is applied. What has more than 8 bits is scaled: integers from 16 bits, floats from [0, 1], or
    from their own range if they leave it. Transparent pixels show white. Of an animation it is the first frame.

    Args:
        source: a path, a URL (file, http, https), a data URI, base64, a PIL image, or a numpy or torch array
            (H W), (H W C) or (C H W) of 1 to 4 channels.

    Raises:
        ValueError: there is no such picture, it is damaged or far too large, or `source` is nothing of the kind.
    """
    if isinstance(source, Image.Image):
        return _guarded("the given image", lambda: _plain(source))
    if isinstance(source, torch.Tensor):
        values = source.detach().cpu()
        return _from_array((values.float() if values.is_floating_point() else values).numpy())
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if not isinstance(source, str | Path):
        raise ValueError(f"got {type(source).__name__} for a picture; expected {_KINDS}")
    shown = str(source)
    shown = shown if len(shown) <= 100 else f"{shown[:60]}... ({len(shown)} characters)"
    return _guarded(shown, lambda: _read(source, shown))


def check_image(source: Any) -> None:
    """Raises ValueError as `open_image` would; a picture on the web is left to be fetched when it is wanted."""
    if _on_web(source):
        return
    try:
        open_image(source)
    except ValueError as error:
        named = source.name if isinstance(source, Path) else "of the row"
        raise ValueError(f"cannot read the image {named}: {error}") from error


def beside(name: str, folder: Path) -> str | Path:
    """A picture named in a file of `folder`: a path is relative to the folder, anything else stays as it is."""
    if _on_web(name) or name.startswith(("file://", "data:")):
        return name
    return folder / _at_home(name)


def _at_home(name: str) -> Path:
    """The path of a name, in which `~/` is the user's folder."""
    return Path(name).expanduser() if name.startswith("~/") else Path(name)


def _on_web(source: Any) -> bool:
    return isinstance(source, str) and source.startswith(("http://", "https://"))


@contextmanager
def _bombs_refused() -> Iterator[None]:
    """Pillow only warns of pictures between one and two times its limit; here they are refused, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _guarded(shown: str, read: Callable[[], Image.Image]) -> Image.Image:
    """What `read` gives, with one clear ValueError for all that can go wrong with a picture."""
    try:
        with _bombs_refused():
            return read()
    except FileNotFoundError:
        raise ValueError(f"there is no image {shown!r}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"cannot read {shown!r} as an image: it is too large. {error}") from error
    except (URLError, HTTPException, TimeoutError) as error:
        raise ValueError(f"cannot fetch the image {shown!r}: {error}") from error
    except UnidentifiedImageError as error:
        raise ValueError(
            f"cannot read {shown!r} as an image: its format is unknown, or it is damaged"
        ) from error
    except ValueError:
        raise
    except Exception as error:  # decoders raise whatever they like, of damaged and truncated files
        raise ValueError(f"cannot read {shown!r} as an image: {error}") from error


def _read(source: str | Path, shown: str) -> Image.Image:
    if isinstance(source, Path):
        return _from_file(source)
    if _on_web(source):
        # some servers refuse urllib's own name
        asked = Request(source, headers={"User-Agent": "foveate"})
        with urlopen(asked, timeout=_PATIENCE) as answer:
            return _from_bytes(answer.read())
    if source.startswith("file://"):
        return _from_file(Path(url2pathname(unquote(urlsplit(source).path))))
    if source.startswith("data:"):
        return _from_data_uri(source, shown)
    return _from_file(_at_home(source)) if names_file(source) else _from_base64(source, shown)


def names_file(text: str) -> bool:
    """Whether there is a file of that name. A long prompt or a base64 text is too long for a name."""
    try:
        return _at_home(text).is_file()
    except (OSError, ValueError):
        return False


def _from_file(path: Path) -> Image.Image:
    if path.is_dir():
        raise ValueError(f"cannot read {str(path)!r} as an image: it is a folder")
    with Image.open(path) as opened:
        return _plain(opened)


def _from_bytes(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content)) as opened:
        return _plain(opened)


def _from_data_uri(uri: str, shown: str) -> Image.Image:
    head, comma, body = uri.partition(",")
    if not comma:
        raise ValueError(
            f"cannot read {shown!r} as an image: a data URI has a comma before its data"
        )
    return (
        _from_base64(unquote(body), shown)
        if head.endswith(";base64")
        else _from_bytes(unquote_to_bytes(body))
    )


def _from_base64(text: str, shown: str) -> Image.Image:
    """The picture of a base64 text. A text too short to hold one, or with other characters, is a missing file."""
    compact = "".join(text.split())
    try:
        content = base64.b64decode(compact, validate=True)
    except (binascii.Error, ValueError):
        content = b""
    if len(content) < 32:  # no format has a smaller picture
        raise ValueError(f"there is no image {shown!r}")
    try:
        return _from_bytes(content)
    except UnidentifiedImageError:
        raise ValueError(f"there is no image {shown!r}; nor is it base64 of one") from None


def _plain(picture: Image.Image) -> Image.Image:
    """Upright, first frame, 8 bits, no alpha, RGB."""
    if getattr(picture, "n_frames", 1) > 1:
        picture.seek(0)
    upright: Image.Image = ImageOps.exif_transpose(picture)
    if upright.mode in _DEEP:
        return _from_levels(np.asarray(upright)).convert("RGB")
    if upright.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in upright.info:
        layer = upright.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return upright.convert("RGB")


def _from_array(values: np.ndarray) -> Image.Image:
    """Of an array (H W), (H W C) or (C H W); integers of 8 or 16 bits, or floats."""
    if values.ndim == 3 and values.shape[2] > 4 and values.shape[0] in (1, 2, 3, 4):
        values = np.moveaxis(values, 0, 2)  # (C H W) -> (H W C)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    fits = values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (2, 3, 4))
    if not fits or not values.size or values.dtype.kind not in "buif":
        raise ValueError(f"got an array of shape {values.shape}, {values.dtype}; expected {_KINDS}")
    if values.dtype == bool:
        values = values.astype(np.uint8) * 255
    return _plain(Image.fromarray(values) if values.dtype == np.uint8 else _from_levels(values))


def _from_levels(values: np.ndarray) -> Image.Image:
    """8 bits from more, scaled: nothing is clipped to white or black.

    Integers up to 255 are 8 bits already, others are 16 bits. Floats are in [0, 1], or else in [0, 255]. What leaves
    these ranges is stretched from its own least and largest value.
    """
    levels = np.nan_to_num(values.astype(np.float64))
    least = float(levels.min())
    most = float(levels.max())
    if values.dtype.kind == "f":
        low, high = (0.0, 1.0) if most <= 1 else (0.0, 255.0)
    else:
        wide = values.dtype in (np.dtype("uint16"), np.dtype(">u2"), np.dtype("<u2"))
        low, high = (0.0, _TOP) if wide or most > 255 else (0.0, 255.0)
    if least < low or most > high:
        low = least
        high = most
    scaled = (levels - low) * (255 / max(high - low, 1e-12))
    return Image.fromarray(scaled.round().astype(np.uint8))
