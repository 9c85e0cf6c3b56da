"""Our tasks for lmms-eval, as a folder for ``--include_path``: ``python -m foveate.lmms.tasks FOLDER [SAMPLES]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ..demo.draw import draw
from ..demo.world import sample
from ..measure.tasks import bundled

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
        {"picture": int(s.group.rpartition("-")[2]), "kind": s.kind, "prompt": s.prompt, "answer": s.references[0]}
        for s in asked
    ]
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "visuals.py").write_text("from foveate.lmms.tasks import doc_to_visual, process_results  # noqa: F401\n")
    (folder / "foveate_questions.yaml").write_text(_YAML.format(data=data.resolve()))


def doc_to_visual(doc: dict[str, Any]) -> list[Any]:
    """The picture that a row is about."""
    return [draw(sample("test", int(doc["picture"]))).image]


def process_results(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """Whether the answer is the reference."""
    said = getattr(results[0], "text", results[0])
    return {"exact": float(str(said).strip().lower() == doc["answer"])}


if __name__ == "__main__":
    write(Path(sys.argv[1]), *(int(text) for text in sys.argv[2:3]))
