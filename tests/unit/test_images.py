"""The one picture loader: what it takes, how it shows it, how it refuses."""

from __future__ import annotations

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.cli.app import run
from foveate.eval.tasks import from_file
from foveate.models.images import open_image

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encoded(picture: Image.Image, kind: str = "png", **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "a photo.png"
    path.write_bytes(encoded(Image.fromarray(PIXELS)))
    return path


def same(found: Image.Image, wanted: Any = PIXELS) -> bool:
    return found.mode == "RGB" and np.array_equal(np.asarray(found), wanted)


def test_every_kind_of_source(photo: Path) -> None:
    raw = photo.read_bytes()
    text = base64.b64encode(raw).decode()
    values = torch.from_numpy(PIXELS)
    sources = [
        photo, str(photo), photo.as_uri(), text, f"data:image/png;base64,{text}", Image.fromarray(PIXELS), PIXELS,
        values, values.permute(2, 0, 1), values.permute(2, 0, 1).float() / 255, PIXELS / 255.0, PIXELS.astype("int64"),
    ]  # fmt: skip
    for source in sources:
        assert same(open_image(source)), type(source)


def test_a_web_address(photo: Path) -> None:
    body = photo.read_bytes()

    class Web(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/there.png" else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Web)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        where = f"http://127.0.0.1:{server.server_port}"
        assert same(open_image(f"{where}/there.png"))
        with pytest.raises(ValueError, match=r"cannot fetch the image .*404"):
            open_image(f"{where}/gone.png")
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(ValueError, match="cannot fetch the image"):
        open_image(f"{where}/there.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_phones_photo_stands_upright(orientation: int, tmp_path: Path) -> None:
    turns = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, 1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }  # fmt: skip
    stored = np.ascontiguousarray(
        turns[orientation](PIXELS)
    )  # as the sensor has it, turned by its orientation
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "phone.png"
    Image.fromarray(stored).save(path, exif=exif)
    assert same(open_image(path))


@pytest.mark.parametrize("levels", ["uint16", "int32", "float32", "float255"])
def test_more_than_eight_bits_are_scaled(levels: str, tmp_path: Path) -> None:
    grey = np.linspace(0, 255, 48).round().reshape(6, 8)
    picture = {
        "uint16": lambda: Image.fromarray((grey * 257).astype("uint16")),
        "int32": lambda: Image.fromarray((grey * 257).astype("int32")),
        "float32": lambda: Image.fromarray((grey / 255).astype("float32")),
        "float255": lambda: Image.fromarray(grey.astype("float32")),
    }[levels]()
    assert picture.mode in ("I;16", "I", "F")
    path = tmp_path / "deep.tiff"
    picture.save(path)
    wanted = np.repeat(grey.astype(np.uint8)[:, :, None], 3, 2)
    assert same(open_image(path), wanted) and same(open_image(picture), wanted)
    assert same(open_image(np.asarray(picture)), wanted)


def test_levels_beyond_their_range_are_stretched() -> None:
    found = np.asarray(open_image(np.array([[-2.0, 0.0], [1.0, 2.0]])))
    assert found[:, :, 0].tolist() == [[0, 128], [191, 255]]


def test_clear_pixels_show_white_in_every_mode(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    clear.putpixel((0, 0), (10, 20, 30, 255))
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((0, 0), 0)
    sources = {
        "rgba.png": (clear, {}),
        "la.png": (clear.convert("LA"), {}),
        "p.png": (palette, {"transparency": 1}),
    }
    for name, (picture, options) in sources.items():
        picture.save(tmp_path / name, **options)
        found = open_image(tmp_path / name)
        assert found.getpixel((3, 3)) == (255, 255, 255), name
        assert found.getpixel((0, 0)) != (255, 255, 255), name
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert open_image(half).getpixel((0, 0)) == (127, 127, 127)


def test_other_modes_and_animations(tmp_path: Path) -> None:
    grey = Image.fromarray(PIXELS[:, :, 0])
    wanted = np.repeat(PIXELS[:, :, :1], 3, 2)
    assert same(open_image(grey), wanted) and same(open_image(PIXELS[:, :, 0]), wanted)
    ink = Image.fromarray(PIXELS).convert("CMYK")
    ink.save(tmp_path / "ink.tiff")
    assert same(open_image(tmp_path / "ink.tiff"), np.asarray(ink.convert("RGB")))
    assert same(
        open_image(Image.fromarray(PIXELS[:, :, 0] > 99)),
        np.repeat(PIXELS[:, :, :1] > 99, 3, 2) * 255,
    )
    frames = [Image.new("RGB", (4, 4), color) for color in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert open_image(tmp_path / "moving.gif").getpixel((0, 0)) == (255, 0, 0)
    moving = Image.open(tmp_path / "moving.gif")
    moving.seek(1)
    assert open_image(moving).getpixel((0, 0)) == (255, 0, 0)


def test_what_is_no_picture_is_one_clear_error(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = photo.read_bytes()
    broken = {"cut.png": whole[: len(whole) // 2], "words.png": b"words" * 20, "empty.png": b""}
    for name, body in broken.items():
        (tmp_path / name).write_bytes(body)
        with pytest.raises(ValueError, match=f"cannot read .*{name}.* as an image"):
            open_image(tmp_path / name)
    noise = np.random.default_rng(1).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    (tmp_path / "cut.jpg").write_bytes(encoded(Image.fromarray(noise), "jpeg")[:9000])
    with pytest.raises(ValueError, match="cannot read"):
        open_image(tmp_path / "cut.jpg")
    with pytest.raises(ValueError, match="there is no image"):
        open_image(tmp_path / "gone.png")
    with pytest.raises(ValueError, match="there is no image"):
        open_image("gone")
    with pytest.raises(ValueError, match="it is a folder"):
        open_image(tmp_path)
    with pytest.raises(ValueError, match="got dict for a picture; expected a path"):
        open_image({})
    with pytest.raises(ValueError, match=r"array of shape \(2, 3, 4, 5\)"):
        open_image(np.zeros((2, 3, 4, 5)))
    with pytest.raises(ValueError, match="comma"):
        open_image("data:image/png;base64")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # the photo has 54: Pillow would only warn
    with pytest.raises(ValueError, match="too large"):
        open_image(photo)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match="too large"):
        open_image(photo)


def test_the_commands_open_pictures_by_it(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turned = Image.open(photo)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    uri = "data:image/png;base64," + base64.b64encode(photo.read_bytes()).decode()
    lines = [
        json.dumps({"image": name, "prompt": "what?", "reference": "red", "metric": "exact"})
        for name in ("turned.png", uri, photo.as_uri())
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    upright, *others = (sample.images()[0] for sample in from_file(tmp_path / "mine.jsonl"))
    assert upright.size == (6, 9) and all(same(other) for other in others)
    assert (
        run(["generate", photo.as_uri(), uri, "what?", "--max-new-tokens", "1", "--repeats", "1"])
        == 0
    )
    assert "unpruned" in capsys.readouterr().err
    longer = "what is this? " * 100  # than any file's name
    assert run(["generate", str(photo), longer, "--max-new-tokens", "1", "--repeats", "1"]) == 0


@pytest.mark.parametrize(
    "error", [RuntimeError, KeyError, IndexError, TypeError, ZeroDivisionError]
)
def test_whatever_a_decoder_raises_is_one_clear_error(
    error: type[Exception], photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: Any, **__: Any) -> None:
        raise error("no such tile")

    monkeypatch.setattr(Image, "open", decode)
    with pytest.raises(
        ValueError, match=r"cannot read .*a photo.png.* as an image: .*no such tile"
    ):
        open_image(photo)


def test_a_path_may_begin_at_the_users_folder(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(photo.parent))
    assert same(open_image("~/a photo.png"))
    rows = photo.parent / "rows" / "data.jsonl"
    rows.parent.mkdir()
    row = {"image": "~/a photo.png", "prompt": "what?", "references": ["a"], "metric": "exact"}
    rows.write_text(json.dumps(row) + "\n")
    assert len(from_file(rows)) == 1
