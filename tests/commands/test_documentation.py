"""README and the pages of docs/ are what they say: code blocks run, print what they show, and name what exists.

Two comments stand before a block that is not run in every test: `<!-- slow -->`, and `<!-- not run: REASON -->`.
Blocks of Python share names with the blocks above them on the page. A block of `text` right after one is what that
prints.
"""

from __future__ import annotations

import ast
import inspect
import re
import runpy
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from foveate.cli.app import app, run
from foveate.methods import factories, knobs

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
BLOCK = re.compile(r"(?:<!-- (slow|not run: [^>]+) -->\n)?^```(\w+)\n(.*?)^```$", re.M | re.S)
PROGRAMS = {"foveate", "make", "pip", "python"}


@dataclass(frozen=True)
class Block:
    """A code block of a page."""

    page: Path
    line: int
    mark: str
    language: str
    code: str
    prints: str | None = None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """A page's blocks, each with the text that it is said to print."""
    text = page.read_text()
    found = list(BLOCK.finditer(text))
    made = []
    for one, after in zip(found, [*found[1:], None], strict=False):
        follows = (
            after is not None and after[2] == "text" and not text[one.end() : after.start()].strip()
        )
        line = text.count("\n", 0, one.start()) + 1
        made.append(
            Block(page, line, one[1] or "", one[2], one[3], after[3] if follows and after else None)
        )
    return made


ALL = [block for page in PAGES for block in blocks(page)]


def to_run(language: str) -> list[Any]:
    """Blocks of a language that run, the long ones marked."""
    marks = {"slow": [pytest.mark.slow], "": []}
    return [
        pytest.param(block, marks=marks[block.mark], id=str(block))
        for block in ALL
        if block.language == language and not block.mark.startswith("not run")
    ]


def commands(block: Block) -> list[list[str]]:
    """The commands of a shell block, without comments."""
    lines = block.code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture
def beside_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder that has a checkout's examples and results, as working folder."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "docs").symlink_to(DOCS)
    monkeypatch.chdir(tmp_path)


def pages_of_python() -> list[Any]:
    """(page, whether its slow blocks run) of every page with Python to run."""
    made = []
    for page in PAGES:
        ours = [
            b
            for b in ALL
            if b.page == page and b.language == "python" and not b.mark.startswith("not run")
        ]
        name = str(page.relative_to(ROOT))
        if any(not b.mark for b in ours):
            made.append(pytest.param(page, False, id=name))
        if any(b.mark == "slow" for b in ours):
            made.append(pytest.param(page, True, marks=pytest.mark.slow, id=f"{name}, slow"))
    return made


@pytest.mark.usefixtures("beside_examples")
@pytest.mark.parametrize(("page", "slow"), pages_of_python())
def test_python_blocks_run_and_print_what_the_page_shows(
    page: Path, slow: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    for block in (b for b in ALL if b.page == page and b.language == "python"):
        if block.mark.startswith("not run") or (block.mark == "slow" and not slow):
            continue
        capsys.readouterr()
        exec(compile(block.code, str(block), "exec"), names)
        printed = capsys.readouterr().out
        if block.prints is not None:
            assert printed == block.prints, block


@pytest.mark.usefixtures("beside_examples")
@pytest.mark.parametrize("block", to_run("sh"))
def test_commands_run(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of foveate; of the others, what they name exists."""
    for program, *words in commands(block):
        assert program in PROGRAMS, f"{block} calls {program}: run it, or say why it is not run"
        if program == "foveate":
            assert run(words) == 0, capsys.readouterr().err
        elif program == "make":
            assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.M), words
        elif program == "python":
            assert (ROOT / words[0]).is_file(), words


@pytest.mark.parametrize(
    "block", [pytest.param(b, id=str(b)) for b in ALL if b.mark.startswith("not run")]
)
def test_what_is_not_run_is_right_as_far_as_one_can_tell(block: Block) -> None:
    """Python parses; commands exist and take these options."""
    if block.language == "python":
        ast.parse(block.code)
        return
    for program, *words in commands(block):
        if program == "foveate":
            takes(words)


def takes(words: list[str]) -> None:
    """Fails unless foveate has such a command with such options."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"foveate has no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    options = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= options, (words, options)


GENERATED = runpy.run_path(str(DOCS / "pages.py"), run_name="pages")
METHODS = GENERATED["names"]()


def test_every_method_has_a_page() -> None:
    """It shows every knob with its default and meaning, and the paper where there is one."""
    assert sorted(factories()) == METHODS
    for name in METHODS:
        text = GENERATED["page"](name)
        doc = inspect.getdoc(factories()[name]) or ""
        assert ("Paper:" in doc) == ("**Paper**" in text), name
        assert (DOCS / "assets" / "methods" / f"{name}.png").is_file(), "run benchmarks/overview.py"
        for knob, (_, default) in knobs(name).items():
            row = re.search(rf"^\| `{knob}` \| (.+?) \| \S", text, re.M)
            assert row, (name, knob)
            needed = default is inspect.Parameter.empty
            assert row[1] == "needed" if needed else eval(row[1].strip("`")) == default
    assert all(f"[{name}]({name}.md)" in GENERATED["index"]() for name in METHODS)


@pytest.mark.slow
@pytest.mark.usefixtures("beside_examples")
@pytest.mark.parametrize("name", METHODS)
def test_the_command_on_a_methods_page_runs(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(GENERATED["page"](name))
    [[_, *words]] = commands(blocks(page)[0])
    assert run(words) == 0, capsys.readouterr().err


def test_the_architecture_names_every_package() -> None:
    tree = (DOCS / "architecture.md").read_text()
    packages = [p.parent.name for p in (ROOT / "src" / "foveate").glob("*/__init__.py")]
    assert [name for name in packages if f"\n  {name}/ " not in tree] == []
    assert all(f">{name}<" in GENERATED["storeys"]() for name in packages)


def test_links_lead_somewhere() -> None:
    """In the repository, or to a page that `docs/pages.py` makes; `make docs` checks the site as a whole."""
    made = {f"methods/{name}.md" for name in (*METHODS, "index")}
    made |= {"contributing.md", "changelog.md", "engine.md", "assets/storeys.svg"}
    for page in PAGES:
        for link in re.findall(
            r"\]\(([^)#\s]+)", re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
        ):
            if link.startswith("https://"):
                continue
            target = (page.parent / link).resolve()
            if page.is_relative_to(DOCS) and target.relative_to(DOCS).as_posix() in made:
                continue
            assert target.exists(), (page, link)


def test_the_start_page_lists_every_example() -> None:
    listed = set(re.findall(r"`examples/([\w.]+)`", (DOCS / "index.md").read_text()))
    assert listed == {
        path.name for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".ipynb")
    }


def test_pages_with_commands_in_sentences_name_commands_and_targets_that_exist() -> None:
    command: Any = typer.main.get_command(app)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        text = page.read_text()
        for name in re.findall(r"`foveate ([a-z]\w*)", text):
            assert name in command.commands, (page, name)
        for name in re.findall(r"`make ([\w-]+)", text):
            assert name in targets, (page, name)


def test_the_runner_finds_blocks_marks_and_what_they_print(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "a\n\n<!-- slow -->\n```python\nprint(1)\n```\n\n```text\n1\n```\n\nb\n\n```sh\nfoveate x\n```\n"
    )
    first, shown, last = blocks(page)
    assert (first.mark, first.language, first.prints) == ("slow", "python", "1\n")
    assert (shown.language, last.mark, last.prints) == ("text", "", None)
    with pytest.raises(AssertionError, match="no command"):
        takes(["no-such-command"])
    with pytest.raises(AssertionError):
        takes(["eval", "--no-such-option"])
