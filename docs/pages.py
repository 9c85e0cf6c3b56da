"""Makes the pages of the site that come from other files: one page for each method, and copies of repository files.

mkdocs-gen-files runs this while the site is built (`make docs`). It reads source text alone, so it needs neither torch
nor transformers.
"""

from __future__ import annotations

import ast
import html
import inspect
import json
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
METHODS = ROOT / "src" / "foveate" / "methods"
RESULTS = ROOT / "docs" / "results"
GROUPS = (
    "before the language model",
    "inside the language model",
    "while the answer grows",
    "controls",
)
CONTROLS = ("downsample", "random")
MEASURED = {  # committed tables, by what they share
    "half of the tokens": "zoo-0.5",
    "a quarter": "zoo-0.25",
    "an eighth": "zoo-0.125",
    "G-Search's tokens": "search-gsearch",
    "a third of the FLOPs": "dyrate-0.33",
}
SHOWN = {
    "object recall": "descriptions object-recall",
    "CIDEr": "captions cider",
    "questions": "questions exact",
}
SECTIONS = ("Paper", "Where", "Deviations", "Args", "Raises")


@dataclass(frozen=True)
class Described:
    """What a factory's source says of its method."""

    name: str
    idea: str
    summary: str
    sections: dict[str, str]
    defaults: dict[str, str]

    @property
    def where(self) -> str:
        """Where it acts: one of the groups that are no controls, and perhaps the layer."""
        said = " ".join(self.sections.get("Where", "").split()).rstrip(".")
        if said.partition(";")[0] not in GROUPS:
            raise SystemExit(
                f"{self.name}: its docstring's 'Where:' is {said!r}; expected one of {GROUPS[:-1]} first"
            )
        return said

    @property
    def group(self) -> str:
        """One of the groups."""
        return GROUPS[-1] if self.name in CONTROLS else self.where.partition(";")[0]

    @property
    def knobs(self) -> dict[str, str]:
        """What "Args" says of each knob."""
        said = self.sections.get("Args", "")
        found = re.split(rf"^\s*({'|'.join(self.defaults)}):\s", said, flags=re.MULTILINE)[1:]
        return {
            name: " ".join(text.split()) for name, text in zip(found[::2], found[1::2], strict=True)
        }


def described(name: str) -> Described:
    """Reads the factory of that name."""
    folder = METHODS / name
    path = folder / "__init__.py" if folder.is_dir() else METHODS / f"{name}.py"
    tree = ast.parse(path.read_text())
    factory = next(
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name
    )
    paragraphs = inspect.cleandoc(ast.get_docstring(factory) or "").split("\n\n")
    sections = {}
    for paragraph in paragraphs[1:]:
        head, _, text = paragraph.partition(":")
        if head in SECTIONS:
            sections[head] = text.strip("\n")
    given = factory.args
    needed = len(given.args) - len(given.defaults)
    constants = {
        ast.unparse(node.targets[0]): ast.unparse(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
    }

    def shown(default: ast.expr) -> str:
        written = ast.unparse(default)
        return f"`{constants.get(written, written)}`"

    defaults = {
        arg.arg: "needed" if i < needed else shown(given.defaults[i - needed])
        for i, arg in enumerate(given.args)
    }
    first = (ast.get_docstring(tree) or "").split("\n\n")[0]
    idea = " ".join(first.partition(": ")[2].split()).split(". ")[0].rstrip(".")
    return Described(
        name, idea or paragraphs[0], " ".join(paragraphs[0].split()), sections, defaults
    )


def names() -> list[str]:
    """Every method."""
    stems = (path.stem for path in METHODS.iterdir() if path.name[0] not in "_.")
    return sorted(name for name in stems if name != "spec")


def page(name: str) -> str:
    """The page of one method."""
    found = described(name)
    paper = " ".join(found.sections.get("Paper", "").split())
    lines = [
        f"# {name}",
        "",
        found.summary,
        "",
        f"**Where it acts**: {found.where}.",
        "",
    ]
    lines += [f"**Paper**: {linked(paper)}", ""] if paper else []
    asked = 'foveate generate examples/scene.png "describe the image in detail."'
    lines += ["```sh", f"{asked} \\", f"  --method {example(name)}", "```", ""]
    lines += [
        f"![Tokens that {name} keeps at three layers](../assets/methods/{name}.png)",
        "",
        "*Tokens kept in the prefill of the bundled model, with the options above (`python benchmarks/overview.py`).*",
        "",
    ]
    if deviations := " ".join(found.sections.get("Deviations", "").split()):
        lines += [
            "## Deviations from the paper",
            "",
            code(deviations[0].upper() + deviations[1:]),
            "",
        ]
    lines += ["## Knobs", "", "| knob | default | meaning |", "|---|---|---|"]
    for knob, default in found.defaults.items():
        lines.append(
            f"| `{knob}` | {default} | {code(found.knobs.get(knob, ''))} |".replace("``", "`")
        )
    lines += [
        "",
        "Every method also takes `weigh`, `merge`, `strength`, `place` and `cutoff`: see "
        "[weighted tokens](../weighting.md).",
        "",
        *measured(name),
        f"In Python: `foveate.methods.{name}(...)`. {raises(found)}",
        "",
    ]
    return "\n".join(lines)


def raises(found: Described) -> str:
    """The errors that a factory raises, in one sentence."""
    said = " ".join(found.sections.get("Raises", "").split())
    error, _, when = said.partition(": ")
    return f"It raises `{error}` for {code(when)}" if error == "ValueError" and when else code(said)


def example(name: str) -> str:
    """The method as text, with knobs that work on the bundled model."""
    return {
        "dyrate": "dyrate:predictor=scenes-0.33",
        "schedule": "schedule:scenes-gsearch",
        "tuned": "tuned:scenes",
        "fastv": "fastv:layer=2,keep=0.5",
        "vtw": "vtw:layer=4",
        "random": "random:layer=2,keep=0.5",
        "downsample": "downsample:layer=2,keep=0.5",
    }.get(name, name)


def code(text: str) -> str:
    """Docstring text in Markdown: table cells may hold no bar."""
    return text.replace("``", "`").replace("|", "\\|")


def linked(paper: str) -> str:
    """A paper's arXiv numbers as links."""
    return re.sub(r"\barXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", code(paper))


def measured(name: str) -> list[str]:
    """Rows of the committed tables in which the method stands alone."""
    rows = []
    for model in ("scenes", "smol"):
        for title, stem in MEASURED.items():
            path = RESULTS / f"{stem}{'' if model == 'scenes' else f'-{model}'}.json"
            body = json.loads(path.read_text())
            for spec, found in body["methods"].items():
                if spec.partition(":")[0] == name and "+" not in spec:
                    cells = [difference(found["figures"][key]) for key in SHOWN.values()]
                    work = [f"{found['work'][key]:.2f}" for key in ("tokens", "flops")]
                    rows.append(f"| {model}, {title} | `{spec}` | {' | '.join([*work, *cells])} |")
    if not rows:
        return []
    return [
        "## Measured",
        "",
        "Cost is relative to the unpruned model: visual tokens per prefill layer, and FLOPs of prefill and decode. "
        "Quality is the paired difference to the unpruned model in points, with its 95 % bootstrap interval. "
        "[All tables](../results.md).",
        "",
        f"| model, budget | method | tokens | FLOPs | {' | '.join(SHOWN)} |",
        "|---" * (4 + len(SHOWN)) + "|",
        *rows,
        "",
    ]


def difference(figure: dict[str, Any]) -> str:
    """A paired difference with its interval."""
    gap = figure["difference"]
    return f"{gap['value']:+.1f} ({gap['low']:.1f} to {gap['high']:.1f})"


def index() -> str:
    """The list of methods by group."""
    lines = [
        "# Methods",
        "",
        "Each page is generated from the docstring of the method's factory. `foveate methods` prints the same texts. "
        "How the papers were checked: [inside the language model](../zoo.md), [before it](../zoo-vision.md).",
    ]
    all_of_them = [described(name) for name in names()]
    for group in GROUPS:
        lines += [
            "",
            f"## {group[0].upper()}{group[1:]}",
            "",
            "| method | idea | paper |",
            "|---|---|---|",
        ]
        for found in (one for one in all_of_them if one.group == group):
            number = re.search(r"\d{4}\.\d{5}", found.sections.get("Paper", ""))
            link = f"[{number[0]}](https://arxiv.org/abs/{number[0]})" if number else ""
            lines.append(
                f"| [{found.name}]({found.name}.md) | {code(found.idea[0].upper() + found.idea[1:])} | {link} |"
            )
    return "\n".join([*lines, ""])


def storeys() -> str:
    """A drawing of the packages, the highest first, each with the first line of its docstring."""
    tree = ast.parse((ROOT / "tests" / "unit" / "test_core.py").read_text())
    names = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "STOREYS"
    )
    height, parts = 30, []
    for row, name in enumerate(reversed(names)):
        package = ROOT / "src" / "foveate" / name / "__init__.py"
        said = (
            (ast.get_docstring(ast.parse(package.read_text())) or "")
            .split("\n\n")[0]
            .replace("`", "")
        )
        said = textwrap.shorten(" ".join(said.split()).split(". ")[0], 105, placeholder="…").rstrip(
            "."
        )
        top = 10 + row * height
        parts.append(
            f'<rect x="10" y="{top}" width="780" height="{height - 4}" rx="5" fill="#e0f2f1" stroke="#00897b"/>'
            f'<text x="24" y="{top + 18}" font-weight="bold" fill="#004d40">{name}</text>'
            f'<text x="120" y="{top + 18}" fill="#263238">{html.escape(said)}</text>'
        )
    whole = 16 + len(names) * height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 {whole}" font-family="Helvetica, Arial, sans-serif" '
        f'font-size="13"><rect width="800" height="{whole}" rx="8" fill="#fff"/>{"".join(parts)}</svg>'
    )


def copied(path: str, links: dict[str, str]) -> str:
    """A file of the repository, with its links as they are on the site."""
    text = (ROOT / path).read_text()
    for old, new in links.items():
        text = text.replace(f"]({old})", f"]({new})")
    return text


def main() -> None:
    """Writes all pages into the site."""
    import mkdocs_gen_files  # noqa: PLC0415 - there while the site is built

    def write(path: str, text: str) -> None:
        with mkdocs_gen_files.open(path, "w") as file:
            file.write(text)

    for name in names():
        write(f"methods/{name}.md", page(name))
    write("methods/index.md", index())
    write("methods/SUMMARY.md", "\n".join(f"- [{name}]({name}.md)" for name in names()))
    write("assets/storeys.svg", storeys())
    links = {
        f"docs/{p}": str(p)
        for p in (f.relative_to(ROOT / "docs") for f in (ROOT / "docs").rglob("*.md"))
    }
    write("contributing.md", copied("CONTRIBUTING.md", links))
    write("changelog.md", copied("CHANGELOG.md", links))
    write("engine.md", copied("src/foveate/engine/README.md", {}))


if __name__ == "<run_path>":  # as mkdocs-gen-files calls it
    main()
