"""A model's sizes from its configuration alone, for any family of transformers: built without
weights and measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..engine.anatomy import Anatomy, anatomy_of, hollow
from ..engine.sizes import TowerShape
from .flops import Shapes
from .pictures import PictureSize

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Architecture:
    """What cost and limits are told from.

    Attributes:
        family: `model_type`.
        shapes: of the decoder.
        tower: the vision tower.
        inner: width of the MLP that a token runs through; of a mixture, of all its experts
            together.
        words: parameters of the word embeddings; 0 where the head is the same matrix.
        vision: parameters of everything beside the decoder: tower and projector.
    """

    family: str
    shapes: Shapes
    tower: TowerShape
    inner: int
    words: int
    vision: int

    @property
    def weights(self) -> int:
        """Parameters of the decoder's layers and its head."""
        return sum(layer.stored for layer in self.shapes.layers) + self.shapes.head

    def vision_flops(self, pictures: Iterable[PictureSize]) -> float:
        """Of tower and projector, in closed form (see `vision`, which counts them on a live model)."""
        return sum(self.tower.flops(p.tiles, p.projected, p.windows) for p in pictures)


def architecture(config: Any, dtype: str = "auto") -> Architecture:
    """Reads the sizes of a configuration.

    Args:
        config: of a vision-language model of any family, whether the engine supports it or not.
        dtype: of the KV cache; "auto" is the configuration's own, or bfloat16 where it names none.

    Raises:
        ValueError: transformers cannot build it, the decoder is of a form whose cost is not known,
            or the dtype is unknown.
    """
    name = str(config.dtype or "bfloat16").removeprefix("torch.") if dtype == "auto" else dtype
    if name not in _BYTES:
        raise ValueError(f"unknown dtype {name!r}; expected auto, {', '.join(_BYTES)}")
    return _measured(anatomy_of(hollow(config)), _BYTES[name])


def architecture_of(model: Any) -> Architecture:
    """As `architecture`, of a live model, whose own dtype is taken."""
    anatomy = anatomy_of(model)
    return _measured(anatomy, anatomy.number_size)


def _measured(anatomy: Anatomy, number_size: int) -> Architecture:
    shapes = Shapes(anatomy.shapes, anatomy.head_size, number_size, anatomy.whole_head)
    return Architecture(
        anatomy.family,
        shapes,
        anatomy.tower_shape,
        _inner(anatomy),
        anatomy.word_size,
        anatomy.vision_size,
    )


def _inner(anatomy: Anatomy) -> int:
    """As `Architecture.inner`; layers of a mixture may differ, and their mean is taken."""
    shapes = anatomy.shapes
    if not any(shape.left for shape in shapes):
        return int(anatomy.decoder.config.intermediate_size)
    # what is left of a layer's matrices without its attention's four is an MLP of three, each of
    # hidden x inner
    wide = [shape.matrices - 2 * shape.hidden * (shape.query + shape.key) for shape in shapes]
    return round(
        sum(w / (3 * shape.hidden) for w, shape in zip(wide, shapes, strict=True)) / len(shapes)
    )
