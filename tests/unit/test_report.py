"""The explorer's data, and the page that is made of them."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import foveate
from foveate.cost.flops import cost_of_trace, shapes
from foveate.cost.vision import vision_flops
from foveate.explore import html, record
from foveate.explore.report import Hint, Panel, Report, Table
from foveate.methods import parse
from foveate.models.loaded import Loaded
from foveate.world.draw import draw
from foveate.world.scenes import sample as scene
from models import explored


def report(**changes: Any) -> Report:
    table = Table("Figures", ("Method", "Objects"), (("unpruned", "93"),), note="measured")
    hints = (Hint("foveate methods", "See all methods"),)
    made = Report("A title", (explored.sample(),), "scenes", "A lead.", table, hints)
    return replace(made, **changes)


def unpacked(row: str) -> list[int]:
    return list(base64.b64decode(row))


def test_a_report_is_json() -> None:
    body = json.loads(json.dumps(asdict(report())))
    assert body["samples"][0]["runs"][1]["reached"][0] == [3, 1] * 7
    assert body["table"]["columns"] == ["Method", "Objects"]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="11 tokens on a grid of"):
        Panel("x", "", 1, 1, tuple(range(11)), (3, 4))
    with pytest.raises(ValueError, match="expected 2 cells"):
        Table("t", ("a", "b"), (("one",),))
    with pytest.raises(ValueError, match="at least one sample"):
        report(samples=())


def test_counts_of_a_run() -> None:
    fastv = explored.sample().runs[1]
    assert [fastv.kept(0, layer) for layer in range(3)] == [14, 7, 7]
    assert fastv.kept(3, 2) == 6  # the last step has lost a token
    assert fastv.share_kept(0, 3) == pytest.approx(28 / 42)


def test_the_payload_keeps_every_number_and_repeats_no_step() -> None:
    packed = html.payload(report())["samples"][0]["runs"][1]
    assert unpacked(packed["reached"][0]) == [3, 1] * 7
    assert packed["reached"][1:3] == [None, None]
    assert unpacked(packed["reached"][3]) == [0, 1] + [3, 1] * 6
    most, levels = packed["attention"][0]
    shares = [most * (level / 255) ** 2 for level in unpacked(levels)]
    assert most == pytest.approx(0.13)
    assert shares == pytest.approx([0.01 * i for i in range(14)], abs=0.002)


def test_the_page_holds_everything_and_asks_for_nothing() -> None:
    page = html.render(report())
    for text in ("A title", "A lead.", "93", "measured", "foveate methods", "What is it?"):
        assert text in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page
    assert 'src="data:' not in page  # one sample has no row of pictures to choose from
    two = html.render(report(samples=(explored.sample(), explored.sample("second"))))
    assert two.count('name="sample"') == 2


def test_no_text_ends_the_script_or_becomes_markup() -> None:
    odd = replace(explored.sample(), prompt="</script><b>bold", title="<i>")
    page = html.render(report(title="<u>", samples=(odd, odd)))
    assert "</script><b>" not in page
    assert "<u>" not in page and "<i>" not in page and "&lt;i&gt;" in page
    start = page.index('id="data">') + len('id="data">')
    body = json.loads(page[start : page.index("</script>", start)])
    assert body["samples"][0]["prompt"] == "</script><b>bold"


def test_a_recorded_sample_says_what_the_trace_says(scenes: Loaded, tmp_path: Path) -> None:
    image = draw(scene("val", 3)).image
    spec = "fastv:layer=2,keep=0.25+dyrate:predictor=scenes-0.33-decode"
    methods = {"unpruned": [], spec: parse(spec)}
    done: list[int] = []
    seen = record.sample(
        scenes, [image], "Describe the image.", methods,
        max_new_tokens=6, title="val 3", tick=lambda: done.append(1),
    )  # fmt: skip
    assert len(done) == 2
    plain, fewer = seen.runs
    assert seen.layers == 8 and [p.grid for p in seen.panels] == [(14, 14)]
    inputs = scenes.inputs([image], "Describe the image.")
    with foveate.apply(scenes.model, *parse(spec)) as trace:
        out = scenes.model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert fewer.answer == scenes.decode(out[0, inputs["input_ids"].shape[1] :])
    counted = {(row.step, row.layer): row.kept for row in trace}
    assert len(counted) == 8 * len(fewer.words) and min(counted.values()) < 49
    for (step, layer), kept in counted.items():
        assert fewer.kept(step, layer) == kept
        assert plain.kept(step, layer) == 196
    whole = cost_of_trace(shapes(scenes.model), trace, tower=vision_flops(scenes.model, inputs))
    assert sum(fewer.flops) == pytest.approx(whole.flops) and fewer.cache[-1] == whole.kv_bytes
    # Attention: none to tokens that no layer holds, and as much in all as the image's share.
    for step, row in enumerate(fewer.attention):
        assert all(
            share == 0
            for share, reached in zip(row, fewer.reached[step], strict=True)
            if not reached
        )
        assert sum(row) == pytest.approx(fewer.split[step][1], abs=1e-4)
        assert sum(fewer.split[step]) == pytest.approx(1, abs=1e-3)
    assert sum(fewer.flops) < 0.7 * sum(plain.flops)
    assert fewer.cache[-1] < fewer.cache[0] < plain.cache[0]  # DyRate drops while decoding
    html.write(Report("t", (seen,), "scenes"), tmp_path / "page.html")
    assert 20_000 < (tmp_path / "page.html").stat().st_size < 200_000


def test_words_join_to_the_answer(scenes: Loaded) -> None:
    text = "medium red circle, small teal cross."
    ids = scenes.tokenizer(text, add_special_tokens=False).input_ids
    words = record.words_of(scenes.tokenizer, [*ids, scenes.tokenizer.eos_token_id])
    assert "".join(words[:-1]) == text and len(words) == len(ids) + 1
    assert words[-1] == f" {scenes.tokenizer.eos_token}"


def test_a_sample_needs_a_picture(scenes: Loaded) -> None:
    with pytest.raises(ValueError, match="at least one"):
        record.sample(scenes, [], "hi", {"unpruned": []})
