"""A tuned setting as one JSON file: a method for a model, what was tried, and what is certified."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..files import write_text
from .documents import body_of
from .schedules import ScheduleFile
from .weighting import Weighting

FORMAT = "foveate tuned"
VERSION = 1
NOTHING = "none"  # the method's text where the unpruned model is the setting
BUNDLED = Path(__file__).parent / "bundled" / "tuned"
SEARCHED = "schedule:searched"  # where it is the schedule that the file holds


@dataclass(frozen=True)
class TunedFile:
    """What `foveate tune` writes, and every other command reads by ``tuned:FILE``.

    Attributes:
        method: the setting as text; `NOTHING`, or `SEARCHED`.
        model: what it is for: `family`, `layers` and `hidden` are checked; name, revision and a
            fingerprint of the weights are noted.
        certificate: what is certified, as `tune.setting.certificate` finds it.
        schedule: the schedule of a setting that was searched.
        wish: what was asked for: loss or speed, and how cost is counted.
        data: how many examples there were, and their hashes.
        tried: every candidate with its cost and what it lost.
        limits: of `core.guard`: what inputs looked like; others run unpruned. Empty: all are pruned.
        spent: what the tuning took: settings tried, examples scored, samples x layers of that, and
            answers generated.
        seed: of the division of the data.
        versions: of foveate, torch, transformers.
    """

    method: str
    model: dict[str, Any]
    certificate: dict[str, Any]
    schedule: ScheduleFile | None = None
    wish: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    tried: list[dict[str, Any]] = field(default_factory=list)
    limits: dict[str, tuple[float, float]] = field(default_factory=dict)
    spent: dict[str, int] = field(default_factory=dict)
    seed: int = 0
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("family", "layers", "hidden"):
            if key not in self.model:
                raise ValueError(f"its model has no {key}")
        if (self.method == SEARCHED) != (self.schedule is not None):
            raise ValueError(f"method {self.method!r} does not go with what it says of a schedule")

    def body(self) -> dict[str, Any]:
        """What the file holds."""
        found = {"format": FORMAT, "version": VERSION, **asdict(self)}
        if self.schedule is not None:
            found["schedule"]["weighting"] = self.schedule.weighting.facts
        return found

    def save(self, path: Path | str) -> None:
        """Writes the file."""
        write_text(path, json.dumps(self.body(), indent=1) + "\n")


def load_tuned(path: Path | str) -> TunedFile:
    """Reads what `foveate tune` wrote.

    Args:
        path: of the file, or the name of a bundled setting, such as ``scenes``.

    Raises:
        ValueError: there is no such file, it is no tuned setting, or it is of a later version.
    """
    if str(path) in bundled():
        path = BUNDLED / f"{path}.json"
    elif not Path(path).is_file():
        raise ValueError(
            f"cannot read a tuned setting from {path}: there is no such file; `foveate tune` writes one, and bundled "
            f"are {', '.join(bundled())}"
        )
    body = body_of(path, "tuned setting", FORMAT, VERSION, "foveate tune")
    try:
        found = body.get("schedule")
        if found is not None:
            found["weighting"] = Weighting(**found.get("weighting", {}))
            body["schedule"] = ScheduleFile(**{**found, "keep": tuple(found["keep"])})
        body["limits"] = {name: tuple(pair) for name, pair in body.get("limits", {}).items()}
        return TunedFile(**body)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no whole tuned setting: {error}") from error


def bundled() -> list[str]:
    """Names of the tuned settings that come with the package."""
    return sorted(path.stem for path in BUNDLED.glob("*.json"))
