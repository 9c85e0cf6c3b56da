"""Our tasks for lmms-eval, as a folder for ``--include_path``: ``python -m foveate.lmms.tasks FOLDER [SAMPLES]``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..eval.tasks import bundled
from ..files import write_text
from ..world.draw import draw
from ..world.scenes import sample

_YAML = """task: foveate_questions
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function visuals.doc_to_visual
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "answer"
generation_kwargs:
  max_new_tokens: 4
  temperature: 0
  do_sample: false
process_results: !function visuals.process_results
metric_list:
  - metric: exact
    aggregation: mean
    higher_is_better: true
"""


def write(folder: Path, samples: int = 200) -> None:
    """Writes the task `foveate_questions`: questions about drawn scenes of the held-out split.

    Args:
        folder: made if it is not there.
        samples: how many questions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    asked = bundled(["questions"], samples)
    rows = [
        {
            "picture": int(s.group.rpartition("-")[2]),
            "kind": s.kind,
            "prompt": s.prompt,
            "answer": s.references[0],
        }
        for s in asked
    ]
    data = folder / "questions.jsonl"
    write_text(data, "".join(json.dumps(row) + "\n" for row in rows))
    write_text(
        folder / "visuals.py",
        "from foveate.lmms.tasks import doc_to_visual, process_results  # noqa: F401\n",
    )
    write_text(
        folder / "foveate_questions.yaml", _YAML.format(data=json.dumps(str(data.resolve())))
    )


def doc_to_visual(doc: dict[str, Any]) -> list[Any]:
    """The picture that a row is about."""
    return [draw(sample("test", int(doc["picture"]))).image]


def process_results(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """Whether the answer is the reference."""
    said = getattr(results[0], "text", results[0])
    return {"exact": float(str(said).strip().lower() == doc["answer"])}


def main(argv: Sequence[str]) -> int:
    """Writes the folder that the arguments name; 2 if they are not a folder and perhaps a number."""
    if len(argv) not in (1, 2) or (len(argv) == 2 and not (argv[1].isdecimal() and int(argv[1]))):
        print(
            "error: expected FOLDER [SAMPLES]: a folder to be written, and how many questions",
            file=sys.stderr,
        )
        return 2
    try:
        write(Path(argv[0]), *(int(text) for text in argv[1:]))
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
