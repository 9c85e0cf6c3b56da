"""A model's sizes from its configuration alone, for any family of transformers: built without weights and measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..engine.anatomy import Anatomy, LayerShape, anatomy_of, hollow
from .cost import Shapes
from .pictures import Picture

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Tower:
    """A vision tower and what follows it.

    Attributes:
        layers: its transformer layers, in order.
        full: which of them attend over a whole tile; the others over the picture's windows.
        patches: parameters of the patch embedding.
        projector: parameters of the matrices between tower and decoder, which run once per visual token.
        extra: tokens besides patches, as [CLS].
        pool: SigLIP's pooling head, or None: one query attends to all patches of a tile. Nobody reads what comes out,
            but transformers runs it unless a configuration says `vision_use_head=False`.
        held: all its parameters and the projector's.
    """

    layers: tuple[LayerShape, ...]
    full: tuple[bool, ...]
    patches: int
    projector: int
    extra: int
    pool: LayerShape | None
    held: int

    def flops(self, picture: Picture) -> float:
        """Of one picture, all tiles, and of the projector over what comes out of the tower.

        Only for pictures of `pictures.picture`, which refuses the families that this is not proven for.
        """
        total = 2.0 * picture.projected * self.projector
        for tile in picture.tiles:
            rows = tile + self.extra
            total += 2.0 * tile * self.patches
            for layer, full in zip(self.layers, self.full, strict=True):
                total += layer.attending(rows, rows * rows if full or picture.windows is None else picture.windows)
            if self.pool is not None:
                total += self.pool.attending(1, rows) + 4 * rows * self.pool.hidden * self.pool.key
        return total


@dataclass(frozen=True)
class Architecture:
    """What cost and limits are told from.

    Attributes:
        family: `model_type`.
        shapes: of the decoder.
        tower: the vision tower.
        inner: width of the MLP that a token runs through; of a mixture, of all its experts together.
        words: parameters of the word embeddings; 0 where the head is the same matrix.
    """

    family: str
    shapes: Shapes
    tower: Tower
    inner: int
    words: int

    @property
    def weights(self) -> int:
        """Parameters of the decoder's layers and its head."""
        return sum(layer.stored for layer in self.shapes.layers) + self.shapes.head


def architecture(config: Any, dtype: str = "auto") -> Architecture:
    """Reads the sizes of a configuration.

    Args:
        config: of a vision-language model of any family, whether the engine supports it or not.
        dtype: of the KV cache; "auto" is the configuration's own, or bfloat16 where it names none.

    Raises:
        ValueError: transformers cannot build it, the decoder is of a form whose cost is not known, or the dtype is
            unknown.
    """
    name = str(config.dtype or "bfloat16").removeprefix("torch.") if dtype == "auto" else dtype
    if name not in _BYTES:
        raise ValueError(f"unknown dtype {name!r}; expected auto, {', '.join(_BYTES)}")
    model = hollow(config)
    anatomy = anatomy_of(model)
    shapes = Shapes(anatomy.shapes, anatomy.head_size, _BYTES[name], anatomy.whole_head)
    return Architecture(anatomy.family, shapes, _tower(anatomy), _inner(anatomy), anatomy.word_size)


def _inner(anatomy: Anatomy) -> int:
    """As `Architecture.inner`; layers of a mixture may differ, and their mean is taken."""
    shapes = anatomy.shapes
    if not any(shape.left for shape in shapes):
        return int(anatomy.decoder.config.intermediate_size)
    # what is left of a layer's matrices without its attention's four is an MLP of three, each of hidden x inner
    wide = [shape.matrices - 2 * shape.hidden * (shape.query + shape.key) for shape in shapes]
    return round(sum(w / (3 * shape.hidden) for w, shape in zip(wide, shapes, strict=True)) / len(shapes))


def _tower(anatomy: Anatomy) -> Tower:
    """Of the modules beside the decoder; the longest stack of alike layers is the tower's."""
    rest = [m for part in anatomy.vision for m in part.modules()]
    stacks = [m for m in rest if isinstance(m, nn.ModuleList) and _attends(m) and _homogeneous(m)]
    blocks: list[Any] = list(max(stacks, key=len, default=[]))
    convolution = next((m for m in rest if isinstance(m, nn.Conv2d | nn.Conv3d)), None)
    width = 0 if convolution is None else convolution.weight.shape[0]
    layers = tuple(LayerShape(_linear(block), width, width, width) for block in blocks)
    full = getattr(anatomy.config.vision_config, "fullatt_block_indexes", None)
    return Tower(
        layers,
        tuple(full is None or i in full for i in range(len(blocks))),
        0 if convolution is None else convolution.weight.numel(),
        sum(p.numel() for part in anatomy.projectors for p in part.parameters() if p.ndim in (2, 4)),
        sum(_classes(m) for m in rest),
        next((_pool(m) for m in rest if hasattr(m, "probe")), None),
        anatomy.vision_size,
    )


def _pool(head: Any) -> LayerShape:
    """SigLIP's pooling head: its one query is a parameter; keys and values of the patches are projected beside."""
    width = head.probe.shape[-1]
    return LayerShape(2 * width * width + _linear(head.mlp), width, width, width)


def _linear(module: nn.Module) -> int:
    """Parameters of the matrices that multiply every token."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def _attends(stack: nn.ModuleList) -> bool:
    return any("attn" in n or "attention" in n for n, _ in stack.named_modules())


def _homogeneous(stack: nn.ModuleList) -> bool:
    return len({type(block) for block in stack}) == 1


def _classes(module: nn.Module) -> int:
    """[CLS] tokens that an embedding adds."""
    names = ("class_embedding", "cls_token")
    return sum(isinstance(getattr(module, name, None), Tensor) for name in names)
