"""The explorer's page in a real browser, without a head; and the command that writes it."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate.cli.app import run
from foveate.explore import html
from foveate.explore.report import Hint, Report, Table
from models import explored

SPEC = "fastv:layer=1,keep=0.5"
PAINTED = """[...document.querySelectorAll("canvas")].every(
    (canvas) => canvas.getContext("2d").getImageData(5, 5, 1, 1).data[3] > 0)"""


def until(page: Any, holds: str) -> None:
    """Waits. Playwright's own wait evaluates text inside of the page, which the page forbids."""
    for _ in range(200):
        if page.evaluate(holds):
            return
        page.wait_for_timeout(25)
    pytest.fail(f"never came true: {holds}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    with sync_api.sync_playwright() as running:
        if found is None and not Path(running.chromium.executable_path).is_file():
            pytest.skip(
                "there is no Chromium: neither on PATH, nor from `playwright install chromium`"
            )
        made = running.chromium.launch(executable_path=found)
        yield made
        made.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two samples, the second without costs."""
    table = Table("Figures", ("Method", *(f"A long heading {i}" for i in range(9))), (("x",) * 10,))
    hints = (Hint("foveate " + "long " * 40, "See"),)
    samples = (explored.sample(), explored.sample("second", unknown="nobody counts it"))
    out = tmp_path_factory.mktemp("explorer") / "page.html"
    html.write(Report("A title", samples, "scenes", "A lead.", table, hints), out)
    return out


@dataclass
class Opened:
    """A page, and what it complained about or asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def canvas(self, method: int, panel: int = 0) -> Any:
        return self.page.locator(".run").nth(method).locator("canvas").nth(panel)

    def drawn(self, method: int, panel: int = 0) -> np.ndarray:
        """Pixels of a screenshot of one picture (H W 3)."""
        shot = self.canvas(method, panel).screenshot()
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)

    def label(self, method: int, panel: int = 0) -> str:
        return str(self.canvas(method, panel).get_attribute("aria-label"))

    def now(self) -> tuple[int, int]:
        """Layer and step of the sliders."""
        read = [self.page.locator(f"#{name}").input_value() for name in ("layer", "step")]
        return int(read[0]), int(read[1])


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """Opens a file; afterwards nothing may have been complained about or fetched."""
    visited: list[Opened] = []

    def go(file: Path, width: int = 1280, height: int = 900, **options: Any) -> Opened:
        page = browser.new_context(
            viewport={"width": width, "height": height}, **options
        ).new_page()
        opened = Opened(page)
        visited.append(opened)
        page.on("console", lambda message: opened.complaints.append(message.text))
        page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        page.on("request", lambda request: opened.requests.append(request.url))
        page.goto(file.as_uri())
        until(page, PAINTED)
        return opened

    yield go
    for opened in visited:
        assert opened.complaints == []
        fetched = [url for url in opened.requests if not url.startswith(("file:", "data:"))]
        assert fetched == [] and len(opened.requests) >= 1
        opened.page.context.close()


def unlike(one: np.ndarray, other: np.ndarray) -> float:
    """Mean difference of two screenshots, whose sizes may differ by the rounding of a pixel."""
    high, wide = np.minimum(one.shape, other.shape)[:2]
    return float(np.abs(one[:high, :wide] - other[:high, :wide]).mean())


def test_sliders_change_what_is_drawn(visit: Any, written: Path) -> None:
    opened = visit(written)
    assert opened.now() == (2, 0)
    last = opened.drawn(1)
    assert "layer 2 keeps 6 of 12 tokens" in opened.label(1)
    opened.page.locator("#layer").fill("0")
    first = opened.drawn(1)
    assert "layer 0 keeps 12 of 12 tokens" in opened.label(1)
    assert unlike(first, last) > 20
    assert unlike(first, opened.drawn(0)) < 1  # all kept: the unpruned picture
    opened.page.locator("#step").fill("3")
    assert "layer 0 keeps 11 of 12 tokens" in opened.label(1)
    assert unlike(first, opened.drawn(1)) > 3
    assert "“</s>”" in opened.page.locator("#step-out").inner_text()
    assert "keeps" in opened.label(2)  # a shorter answer stays at its end
    for view, words in (
        ("depth", "reach the last layer"),
        ("attention", "brightest token gets 11 %"),
    ):
        before = opened.drawn(1)
        opened.page.locator(f"[name=view][value={view}]").check()
        assert words in opened.label(1)
        assert unlike(before, opened.drawn(1)) > 3


def test_kept_cells_show_the_picture_and_dropped_ones_are_grey(visit: Any, written: Path) -> None:
    opened = visit(written)
    plain = opened.drawn(0)
    pruned = opened.drawn(1)
    high, wide = plain.shape[0] / 3, plain.shape[1] / 4
    for cell in range(12):  # the middle of every cell, away from outlines
        top, left = int((cell // 4 + 0.25) * high), int((cell % 4 + 0.25) * wide)
        inside = (slice(top, top + int(high / 2)), slice(left, left + int(wide / 2)))
        spread = pruned[inside].max(-1) - pruned[inside].min(-1)
        if cell % 2 == 0:
            np.testing.assert_allclose(pruned[inside], plain[inside], atol=8)
            assert spread.min() > 100
        else:
            assert spread.max() < 12
            assert pruned[inside].mean() < plain[inside].mean()


def test_words_show_the_step_at_which_they_were_said(visit: Any, written: Path) -> None:
    opened = visit(written)
    words = opened.page.locator(".run").nth(1).locator(".word")
    assert words.all_inner_texts() == ["a", "red", "thing", "</s>"]
    words.nth(2).hover()
    assert opened.now() == (2, 2)
    assert words.nth(2).get_attribute("aria-current") == "step"
    readout = opened.page.locator(".run").nth(1).locator(".readout").inner_text()
    assert (
        readout
        == "7 of 14 tokens in layer 2. Visual tokens get 30 % of the attention at step 2 (10 % in this layer)."
    )
    assert words.nth(1).get_attribute("title") == "step 1: visual tokens get 20 % of the attention"


def test_everything_can_be_reached_with_the_keyboard(visit: Any, written: Path) -> None:
    opened = visit(written)
    press = opened.page.keyboard.press
    press("ArrowRight")
    assert opened.now() == (2, 1)
    press("Shift+ArrowLeft")
    assert opened.now() == (1, 1)
    for _ in range(9):
        press("ArrowRight")
    assert opened.now() == (1, 3)  # the end
    opened.page.locator("#layer").focus()
    press("ArrowLeft")
    assert opened.now() == (0, 3)  # a slider's own arrows move that slider alone
    opened.page.locator(".run").nth(0).locator(".word[aria-current]").focus()
    press("ArrowLeft")
    assert opened.now() == (0, 2)
    assert opened.page.evaluate("document.activeElement.textContent") == "thing"
    opened.page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    named = "(({ id, name, className, tagName }) => id || name || className || tagName)(document.activeElement)"
    seen = set()
    for _ in range(40):
        press("Tab")
        seen.add(opened.page.evaluate(named))
    wanted = {"skip", "theme", "sample", "layer", "step", "play", "view", "word", "scroll card"}
    assert wanted | {"SUMMARY"} <= seen


def test_names_and_roles_for_those_who_do_not_see_it(visit: Any, written: Path) -> None:
    page = visit(written).page
    assert page.get_by_role("slider", name="Layer").count() == 1
    assert page.get_by_role("slider", name="Step").count() == 1
    assert page.get_by_role("radio", name="Kept tokens").is_checked()
    assert page.get_by_role("heading", level=1).inner_text() == "A title"
    assert page.get_by_role("img", name=f"{SPEC}, step 0. Picture: layer 2 keeps 6").count() == 1
    assert (
        page.get_by_role("img", name=f"KV cache, in bytes. At 0: unpruned: 400 k; {SPEC}").count()
        == 1
    )
    page.keyboard.press("ArrowRight")
    until(page, "document.getElementById('said').textContent.includes('step 1')")
    said = page.locator("#said").inner_text()
    assert said.startswith(f"Layer 2, step 1: unpruned keeps 14, {SPEC} keeps 7")


def test_methods_are_shown_or_hidden_but_one_stays(visit: Any, written: Path) -> None:
    page = visit(written).page
    boxes = page.locator("#methods input")
    assert page.locator(".run:visible").count() == 3
    boxes.nth(0).uncheck()
    assert page.locator(".run:visible").count() == 2
    assert page.locator(".curve").first.locator("polyline").count() == 2
    boxes.nth(1).uncheck()
    boxes.nth(2).click()
    assert page.locator(".run:visible").count() == 1 and boxes.nth(2).is_checked()
    assert (
        page.locator("#step").get_attribute("max") == "2"
    )  # the only answer shown has three words


def test_another_sample_and_costs_that_are_not_known(visit: Any, written: Path) -> None:
    page = visit(written).page
    assert page.locator(".curve").count() == 6
    page.get_by_role("radio", name="second").check()
    assert page.locator(".curve").count() == 4
    assert "nobody counts it" in page.locator("#curves").inner_text()


def test_the_trace_is_a_table(visit: Any, written: Path) -> None:
    page = visit(written).page
    page.locator("summary").nth(1).click()
    page.locator(".trace").wait_for()
    rows = page.locator(".trace tbody tr")
    read = [row.locator("td").all_inner_texts() for row in rows.all()]
    assert read == [["14", "14", "14", "13"], ["7", "7", "7", "6"], ["7", "7", "7", "6"]]
    page.keyboard.press("ArrowRight")
    assert page.locator(".trace thead .now").inner_text().split() == ["1", "red"]


@pytest.mark.parametrize("width", [320, 390, 768])
def test_no_page_is_wider_than_its_screen(visit: Any, written: Path, width: int) -> None:
    page = visit(written, width, 800).page
    for details in page.locator("summary").all():
        details.click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    boxes = [page.locator(".run").nth(i).bounding_box() for i in range(2)]
    assert (boxes[0]["x"] == boxes[1]["x"]) == (width < 800)  # below each other
    bar = page.locator(".controls").bounding_box()
    assert width > 600 or bar["y"] + bar["height"] == pytest.approx(800, abs=1)  # within reach


def test_light_and_dark(visit: Any, written: Path) -> None:
    def paper(page: Any) -> float:
        text = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return float(np.mean([float(v) for v in text.removeprefix("rgb(").rstrip(")").split(",")]))

    light = visit(written, color_scheme="light").page
    dark = visit(written, color_scheme="dark").page
    assert paper(light) > 200 and paper(dark) < 50
    dark.locator("#theme").click()
    assert paper(dark) > 200


def test_the_command_writes_a_page_that_works(
    visit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    argv = ["explore", "scene:3", "Describe the image.", "--method", "fastv:layer=2,keep=0.25",
            "--max-new-tokens", "4", "--out", str(out), "--json"]  # fmt: skip
    assert run(argv) == 0
    told = json.loads(capsys.readouterr().out)
    plain, fewer = told["rows"]
    assert plain["kept"] == 1 and fewer["kept"] == pytest.approx((2 + 6 * 0.25) / 8)
    assert fewer["flops"] < plain["flops"] and fewer["steps"] == 4
    assert out.stat().st_size < 300_000
    opened = visit(out)
    assert "layer 7 keeps 49 of 196 tokens" in opened.label(1)
    dropped = opened.drawn(1).mean(), opened.drawn(0).mean()
    assert dropped[0] < 0.8 * dropped[1]
    assert "0.25" in opened.page.locator(".figures").inner_text()
    hint = shlex.split(opened.page.locator("code").first.inner_text())
    assert run([*hint[1:], "--max-new-tokens", "2", "--repeats", "1"]) == 0  # it can be pasted


WRONG = {
    "no image 'nowhere.png'": ["nowhere.png", "What?"],
    "unknown method 'nope'": ["scene:1", "What?", "--method", "nope"],
    "there is no folder": ["scene:1", "What?", "--out", "no/such/folder/x.html"],
    "ends in .html": ["scene:1", "What?", "--out", "page.png"],
    "it is a folder": ["scene:1", "What?", "--out", "folder.html"],
    "expected at least one image": ["What?"],
    "the prompt is empty": ["scene:1", " "],
}


@pytest.mark.parametrize("words", WRONG)
def test_bad_input_is_one_line_before_the_model_runs(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("foveate.cli.explore.load", lambda *args, **options: pytest.fail("it ran"))
    Path("folder.html").mkdir()
    assert run(["explore", *WRONG[words]]) == 2
    said = capsys.readouterr()
    assert words in " ".join(said.err.split()) and said.err.count("error:") == 1 and not said.out
    assert os.listdir() == ["folder.html"]
