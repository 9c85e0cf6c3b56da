"""A schedule as one JSON file: what each layer keeps, by which ranking, for which model, and how it
was found.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..core.schedules import PerLayer
from ..files import write_text
from .documents import body_of
from .weighting import UNWEIGHED, Weighting

FORMAT = "foveate schedule"
VERSION = 1
BUNDLED = Path(__file__).parent / "bundled" / "schedules"


@dataclass(frozen=True)
class ScheduleFile:
    """What `foveate search` writes, and every other command reads.

    Attributes:
        keep: share of the visual tokens that each layer runs with.
        ranking: by what tokens are ranked: a name of `core.scores.RANKINGS`, or a method, whose
            score it is then.
        within: "sample", or "image" where every image keeps its share.
        model: what it is for: `family` and `layers` are checked; name, decoder, hidden, heads and
            revision are noted.
        algorithm: the name of the strategy, and its numbers.
        seed: of the search.
        data: what it was searched and judged on.
        scores: quality and its 95 % intervals, "calibration" and "held out", each of this schedule
            and unpruned.
        costs: FLOPs ratio, mean share kept, KV bytes ratio.
        search: what searching cost.
        versions: of foveate, torch, transformers.
        weighting: what kept tokens weighed, and whether they became means, when it was searched. A
            file without weights and means says nothing of it.
    """

    keep: tuple[float, ...]
    ranking: str
    within: str
    model: dict[str, Any]
    algorithm: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    data: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    costs: dict[str, Any] = field(default_factory=dict)
    search: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    weighting: Weighting = UNWEIGHED

    def __post_init__(self) -> None:
        _ = self.schedule
        if not isinstance(self.ranking, str) or not self.ranking:
            raise ValueError(
                f"ranking={self.ranking!r}; expected the name of a ranking or of a method"
            )
        if self.within not in ("sample", "image"):
            raise ValueError(f"within={self.within!r}; expected sample or image")
        if self.model.get("layers") != len(self.keep):
            raise ValueError(
                f"it is for {self.model.get('layers')} layers, but keeps shares of {len(self.keep)}"
            )

    @property
    def schedule(self) -> PerLayer:
        """The schedule, which refuses other models."""
        return PerLayer(
            tuple(float(share) for share in self.keep), str(self.model.get("family", ""))
        )

    def save(self, path: Path | str) -> None:
        """Writes the file."""
        body = {"format": FORMAT, "version": VERSION, **asdict(self)}
        body["weighting"] = self.weighting.facts
        if not body["weighting"]:
            del body["weighting"]
        write_text(path, json.dumps(body, indent=1) + "\n")


def load_schedule(path: Path | str) -> ScheduleFile:
    """Reads a schedule that `foveate search` wrote.

    Args:
        path: of the file, or the name of a bundled schedule, such as ``scenes-gsearch``.

    Raises:
        ValueError: there is no such file, it is no schedule, or it is of a later version of the
            format.
    """
    if str(path) in bundled():
        path = BUNDLED / f"{path}.json"
    elif not Path(path).exists():
        raise ValueError(
            f"cannot read a schedule from {path}: there is no such file; bundled are {', '.join(bundled())}"
        )
    body = body_of(path, "schedule", FORMAT, VERSION, "foveate search")
    try:
        body["weighting"] = Weighting(**body.get("weighting", {}))
        return ScheduleFile(**{**body, "keep": tuple(body["keep"])})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no whole schedule: {error}") from error


def bundled() -> list[str]:
    """Names of the schedules that come with the package."""
    return sorted(path.stem for path in BUNDLED.glob("*.json"))
