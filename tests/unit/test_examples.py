"""Examples and scripts run as they stand, and pages of figures are what the scripts render."""

from __future__ import annotations

import base64
import importlib.util
import json
import runpy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from foveate.cli.app import run

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "quickstart.ipynb"
SCENE = (
    "medium striped red square top left, small gray circle bottom, medium blue ring bottom right."
)


def ran(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """The lines that an example prints, run from the root of the checkout."""
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def test_the_example_of_an_own_method(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "own_method.py"), run_name="__main__")
    full, fewer = capsys.readouterr().out.splitlines()
    assert full.startswith("[196, 196, 196, 196, 196, 196, 196, 196]")
    assert fewer.startswith("[196, 196, 196, 184, 172, 160, 148, 136]")


def test_the_example_of_a_pipeline(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "pipeline.py"), run_name="__main__")
    said, kept = capsys.readouterr().out.splitlines()
    assert len(said.split()) > 5 and kept == "25% of the visual tokens were kept"


def test_the_example_of_an_own_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ran("own_model", capsys, monkeypatch) == [
        "blue: 100% of the visual tokens",
        "blue: 62% of the visual tokens",
    ]


def test_the_example_of_a_batch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    described, *short = ran("batch", capsys, monkeypatch)
    assert "large dotted brown cross top left" in described and described.endswith("(49 tokens)")
    assert [line.rsplit("? ")[1] for line in short] == [
        "blue (49 tokens)",
        "one (49 tokens)",
        "no (49 tokens)",
    ]


def test_the_example_of_streaming(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ran("streaming", capsys, monkeypatch) == [SCENE]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft calls what transformers deprecates
def test_the_example_of_peft(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    *steps, answer = ran("with_peft", capsys, monkeypatch)
    losses = [float(line.rpartition(" ")[2]) for line in steps]
    assert answer == "blue" and losses[0] > losses[-1] > 0


def test_the_example_of_a_server() -> None:
    """Requests that come together are answered, each with its own answer; files cannot be read."""
    pytest.importorskip("fastapi", reason="pip install 'foveate[examples]'")
    pytest.importorskip("httpx", reason="pip install 'foveate[examples]'")
    from fastapi.testclient import TestClient  # noqa: PLC0415 - an extra

    served = runpy.run_path(str(EXAMPLES / "serve.py"), run_name="served")
    picture = (EXAMPLES / "scene.png").read_bytes()
    image = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    asked = {
        "what color is the ring?": "blue",
        "how many red shapes are there?": "one",
        "describe the image in detail.": SCENE,
    }
    with TestClient(served["app"]) as client, ThreadPoolExecutor(len(asked)) as pool:

        def ask(prompt: str) -> Any:
            return client.post("/answer", json={"image": image, "prompt": prompt}).json()

        for said, right in zip(pool.map(ask, asked), asked.values(), strict=True):
            assert said == {"text": right, "tokens_kept": 49, "tokens_total": 196}
        for wrong in ("/etc/hosts", "file:///etc/hosts", "data:image/png;base64,AAAA"):
            body = {"image": wrong, "prompt": "what is it?"}
            assert client.post("/answer", json=body).status_code == 422


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a kernel where nbclient and ipykernel are installed, else its cells in turn."""
    monkeypatch.chdir(ROOT)
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert not [cell for cell in cells if cell.get("outputs")], "commit it without outputs"
    if all(importlib.util.find_spec(name) for name in ("nbclient", "ipykernel", "nbformat")):
        import nbformat  # noqa: PLC0415 - an extra
        from nbclient import NotebookClient  # noqa: PLC0415

        book = nbformat.read(NOTEBOOK, as_version=4)
        NotebookClient(book, timeout=300, kernel_name="python3").execute()
        printed = [out.get("text", "") for cell in book.cells for out in cell.get("outputs", [])]
        assert any("the same answer: True" in text for text in printed)
        return
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert names["quarter"] == names["full"] and names["pruned"].flops < names["whole"].flops / 2


def test_readme_cards_and_pages_say_what_was_measured() -> None:
    """Their figures are those of docs/results/*.json, as benchmarks/tables.py renders them."""
    tables = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    for (path, mark), render in tables["BLOCKS"].items():
        assert tables["between"](path.read_text(), mark, render()) == path.read_text(), (path, mark)
    for path, render in tables["PAGES"].items():
        assert path.read_text() == render(), path


def test_pages_of_weights_say_what_was_measured() -> None:
    weighting = runpy.run_path(str(ROOT / "benchmarks" / "weighting.py"))
    for path in (weighting["GUIDE"], weighting["TABLES"]):
        assert weighting["filled"](path) == path.read_text(), path


@pytest.mark.parametrize("script", ["report", "ablations"])
def test_pages_of_results_say_what_was_measured(
    script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/results.md and docs/ablations.md are what the scripts render of docs/results/."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # as for a script that is run
    page = runpy.run_path(str(ROOT / "benchmarks" / f"{script}.py"))
    assert page["render"]() == page["PAGE"].read_text()


def test_the_example_in_containers() -> None:
    """The compose file and the Dockerfile name what is there, and start a command that `foveate serve` takes."""
    yaml = pytest.importorskip("yaml")
    folder = EXAMPLES / "serving"
    service = yaml.safe_load((folder / "compose.yaml").read_text())["services"]["foveate"]
    context = (folder / service["build"]["context"]).resolve()
    assert context == ROOT
    steps = [
        line.split(maxsplit=1)
        for line in (context / service["build"]["dockerfile"]).read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert steps[0][0] == "FROM" and len(steps) <= 10
    copied = [name for step, rest in steps if step == "COPY" for name in rest.split()[:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)
    image = dict(steps)
    assert json.loads(image["ENTRYPOINT"]) == ["foveate", "serve"]
    assert json.loads(image["CMD"]) == service["command"]
    assert run(["serve", *service["command"], "--dry-run"]) == 0
