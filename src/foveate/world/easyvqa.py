"""easy-vqa (Victor Zhou, MIT): a third party's pictures and questions, if the package is installed.

Never shipped with this package: ``pip install foveate[easy-vqa]`` brings it.
"""

from __future__ import annotations

import importlib.util
import json
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from ..models.images import open_image
from .language import Turn
from .scenes import SIDE


class EasyVQA:
    """The data set in `folder` (the package's ``data``): 64 x 64 pictures, enlarged to `SIDE`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def find(cls) -> EasyVQA | None:
        """The installed data set, or None."""
        spec = importlib.util.find_spec("easy_vqa")
        if spec is None or spec.origin is None:
            return None
        return cls(Path(spec.origin).parent / "data")

    @cached_property
    def _questions(self) -> dict[str, dict[int, list[Turn]]]:
        found: dict[str, dict[int, list[Turn]]] = {}
        for split in ("train", "test"):
            found[split] = {}
            for question, answer, image in json.loads(
                (self.folder / split / "questions.json").read_text()
            ):
                found[split].setdefault(image, []).append(Turn("easy-vqa", question, answer))
        return found

    def images(self, split: str) -> int:
        """Number of pictures in `split` ("train" or "test")."""
        return len(self._questions[split])

    def picture(self, split: str, index: int) -> Image.Image:
        """The picture, enlarged."""
        path = self.folder / split / "images" / f"{index}.png"
        return open_image(path).resize((SIDE, SIDE), Image.Resampling.BICUBIC)

    def turns(
        self, split: str, index: int, rng: np.random.Generator | None = None
    ) -> tuple[np.ndarray, list[Turn]]:
        """Pixels (H W 3) and the turns about them, shuffled if `rng` is given."""
        turns = self._questions[split][index]
        if rng is not None:
            turns = [turns[int(i)] for i in rng.permutation(len(turns))]
        return np.array(self.picture(split, index)), turns
