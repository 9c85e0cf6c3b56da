"""A model's sizes from its configuration alone, for any family of transformers: built without weights and measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .cost import LayerShape, Shapes
from .models import hollow
from .pictures import Picture

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_PROJECTORS = ("multi_modal_projector", "connector", "aligner", "merger")


@dataclass(frozen=True)
class Tower:
    """A vision tower and what follows it.

    Attributes:
        layers: its transformer layers, in order.
        full: which of them attend over a whole tile; the others over the picture's windows.
        patches: parameters of the patch embedding.
        projector: parameters of the matrices between tower and decoder, which run once per visual token.
        extra: tokens besides patches, as [CLS].
        held: all its parameters and the projector's.
    """

    layers: tuple[LayerShape, ...]
    full: tuple[bool, ...]
    patches: int
    projector: int
    extra: int
    held: int

    def flops(self, picture: Picture) -> float:
        """Of one picture, all tiles, and of the projector over what comes out of the tower."""
        total = 2.0 * picture.projected * self.projector
        for tile in picture.tiles:
            rows = tile + self.extra
            total += 2.0 * tile * self.patches
            for layer, full in zip(self.layers, self.full, strict=True):
                pairs = rows * rows if full or picture.windows is None else picture.windows
                total += 2 * rows * layer.matrices + 4 * pairs * layer.query
        return total


@dataclass(frozen=True)
class Architecture:
    """What cost and limits are told from.

    Attributes:
        family: `model_type`.
        shapes: of the decoder; its `tower` is 0, for a tower's work depends on the picture.
        tower: the vision tower.
        inner: width of the decoder's MLP.
        words: parameters of the word embeddings; 0 where the head is the same matrix.
    """

    family: str
    shapes: Shapes
    tower: Tower
    inner: int
    words: int

    @property
    def weights(self) -> int:
        """Parameters of the decoder's layers and its head: what every decode step reads."""
        return sum(layer.matrices for layer in self.shapes.layers) + self.shapes.head


def architecture(config: Any, dtype: str = "auto") -> Architecture:
    """Reads the sizes of a configuration.

    Args:
        config: of a vision-language model of any family, whether the engine supports it or not.
        dtype: of the KV cache; "auto" is the configuration's own, or bfloat16 where it names none.

    Raises:
        ValueError: the decoder's layers have no separate query and key projections, or the dtype is unknown.
    """
    model = hollow(config)
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if layers is None or not all(hasattr(getattr(layer, "self_attn", None), "q_proj") for layer in layers):
        raise ValueError(
            f"the decoder of {config.model_type} ({type(decoder).__name__}) is not a stack of layers with q_proj and "
            "k_proj, as Llama, Mistral, Qwen and Gemma are; its cost is not known"
        )
    if any("expert" in name for name, _ in layers.named_modules()):
        raise ValueError(f"{config.model_type} has experts, of which each token runs a few; its cost is not known")
    name = str(config.dtype or "bfloat16").removeprefix("torch.") if dtype == "auto" else dtype
    if name not in _BYTES:
        raise ValueError(f"unknown dtype {name!r}; expected auto, {', '.join(_BYTES)}")
    head, words = model.get_output_embeddings(), model.get_input_embeddings()
    shapes = Shapes(tuple(_layer(layer) for layer in layers), head.weight.numel(), 0.0, _BYTES[name])
    inner = int(config.get_text_config().intermediate_size)
    own = 0 if words.weight is head.weight else words.weight.numel()
    return Architecture(config.model_type, shapes, _tower(model, decoder, config), inner, own)


def _layer(layer: Any) -> LayerShape:
    """As `cost.layer_shape`, whatever the layer calls its attention; `hidden` is its input."""
    attention = layer.self_attn
    query, hidden = attention.q_proj.weight.shape
    return LayerShape(sum(_matrices(layer)), query, attention.k_proj.weight.shape[0], hidden)


def _matrices(module: nn.Module) -> Iterator[int]:
    """Sizes of the weights that multiply every token."""
    yield from (m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def _tower(model: Any, decoder: nn.Module, config: Any) -> Tower:
    """The modules beside the decoder: the one with the longest stack of layers is the tower."""
    inner = {*decoder.modules(), model.get_output_embeddings()}
    rest = [(n, m) for n, m in model.named_modules() if m not in inner and m is not model]
    stacks = [(n, m) for n, m in rest if isinstance(m, nn.ModuleList) and _attends(m) and _homogeneous(m)]
    name, stack = max(stacks, key=lambda pair: len(pair[1]))
    convolution = next(m for _, m in rest if isinstance(m, nn.Conv2d | nn.Conv3d))
    width = convolution.weight.shape[0]
    blocks: list[Any] = list(stack)
    layers = tuple(LayerShape(sum(_matrices(b)), width, width, width) for b in blocks)
    full = getattr(config.vision_config, "fullatt_block_indexes", None)
    projectors = [m for n, m in rest if n.split(".")[-1] in _PROJECTORS and not n.startswith(f"{name}.")]
    mine = {id(p): p.numel() for n, m in rest for p in m.parameters(recurse=False)}
    return Tower(
        layers,
        tuple(full is None or i in full for i in range(len(blocks))),
        convolution.weight.numel(),
        sum(p.numel() for m in projectors for p in m.parameters() if p.ndim == 2),
        sum(_classes(m) for _, m in rest),
        sum(mine.values()),
    )


def _attends(stack: nn.ModuleList) -> bool:
    return any("attn" in n or "attention" in n for n, _ in stack.named_modules())


def _homogeneous(stack: nn.ModuleList) -> bool:
    return len({type(block) for block in stack}) == 1


def _classes(module: nn.Module) -> int:
    """[CLS] tokens that an embedding adds."""
    names = ("class_embedding", "cls_token")
    return sum(isinstance(getattr(module, name, None), Tensor) for name in names)
