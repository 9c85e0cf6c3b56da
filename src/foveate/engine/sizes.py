"""How large layers and towers are, read off their modules; and THE formula of FLOPs.

Nobody else writes that formula down.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

Amount = TypeVar("Amount", float, Tensor)


@dataclass(frozen=True)
class LayerShape:
    """One transformer layer: the parameters of its matrices and the sizes of its attention.

    It has THE formula of a layer's FLOPs.

    Attributes:
        matrices: parameters that one token runs through. Of a mixture of experts these are the
            router, shared experts, and as many of the others as a token is sent to.
        query: heads x head size.
        key: key-value heads x head size.
        hidden: width of the layer's input.
        left: parameters of the experts that one token is not sent to; 0 where there are none.
        idle: their share of all experts that tokens are sent to, in [0, 1).
    """

    matrices: int
    query: int
    key: int
    hidden: int
    left: int = 0
    idle: float = 0.0

    @property
    def stored(self) -> int:
        """Parameters of all its matrices, all experts included: what is in memory."""
        return self.matrices + self.left

    def read(self, tokens: float) -> float:
        """Parameters that a forward of so many tokens reads.

        The router is taken to spread the tokens evenly over the experts. An expert is read
        if one of the tokens, at least, is sent to it.
        """
        return self.stored - self.left * self.idle ** max(tokens - 1, 0)

    def flops(self, rows: Amount, before: Amount | float = 0) -> Amount:
        """Of `rows` new tokens that attend to `before` earlier ones and to themselves.

        Numbers and tensors are taken alike.
        """
        return self.attending(rows, rows * (before + rows))

    def attending(self, rows: Amount, pairs: Amount) -> Amount:
        """Of `rows` new tokens that together attend to `pairs` (query, key).

        Windows leave some pairs out. Every row goes through the matrices, and every pair costs a
        product of a query with a key, and one of a weight with a value: 2 FLOPs a
        multiply-accumulate.
        """
        return 2 * rows * self.matrices + 4 * pairs * self.query

    def steps(self, count: float, before: float) -> float:
        """Of `count` tokens one after the other.

        The first of them attends to `before` earlier ones and to itself. FLOPs grow evenly from
        step to step, so all together cost `count` times the middle one.
        """
        return count * self.flops(1.0, before + (count - 1) / 2)

    def ranking(self, queries: Amount, keys: Amount, projected: Amount | float = 0) -> Amount:
        """Of `queries` attention rows recomputed against `keys` keys.

        Of the keys, `projected` are projected anew.
        """
        return (
            2 * queries * self.query * (self.hidden + keys) + 2 * projected * self.hidden * self.key
        )

    def cache(self, tokens: Amount) -> Amount:
        """Numbers that the KV cache holds for so many tokens."""
        return 2 * self.key * tokens


@dataclass(frozen=True)
class TowerShape:
    """A vision tower and what follows it.

    The tower is a stack of transformer layers behind a patch embedding.

    Attributes:
        layers: its transformer layers, in order.
        full: which of them attend over a whole tile; the others over the picture's windows.
        patches: parameters of the patch embedding.
        projector: parameters of the matrices between tower and decoder, which run once per visual
            token.
        extra: tokens besides patches, as [CLS].
        pool: SigLIP's pooling head, or None: one query attends to all patches of a tile. Nobody
            reads what comes out, but transformers runs it unless a configuration says
            `vision_use_head=False`.
    """

    layers: tuple[LayerShape, ...]
    full: tuple[bool, ...]
    patches: int
    projector: int
    extra: int
    pool: LayerShape | None

    def flops(self, tiles: Sequence[int], projected: int, windows: int | None) -> float:
        """Of one picture through tower and projector.

        It holds for the families that it is proven for (`measure.pictures`).

        Args:
            tiles: patches of each tile.
            projected: tokens that go through the projector.
            windows: sum over the windows of a windowed layer of their squared patches; None where
                all see all.
        """
        total = 2.0 * projected * self.projector
        for tile in tiles:
            rows = tile + self.extra
            total += 2.0 * tile * self.patches
            for layer, full in zip(self.layers, self.full, strict=True):
                total += layer.attending(rows, rows * rows if full or windows is None else windows)
            if self.pool is not None:
                # its query meets every patch; keys and values of the patches are two more matrices,
                # run on every row
                total += self.pool.attending(1, rows) + 4 * rows * self.pool.hidden * self.pool.key
        return total


def layer_shape(layer: Any, family: str = "this model") -> LayerShape:
    """The shape of a decoder layer.

    Raises:
        ValueError: it has no `self_attn.q_proj` and `k_proj`, or experts of which no number says
            how many a token uses.
    """
    attention: Any = getattr(layer, "self_attn", None)
    if not hasattr(attention, "q_proj") or not hasattr(attention, "k_proj"):
        raise ValueError(
            f"the decoder layers of {family} ({type(layer).__name__}) have no self_attn.q_proj and k_proj, as Llama's, "
            "Mistral's, Qwen's and Gemma's have; their cost is not known"
        )
    query, hidden = _outputs_inputs(attention.q_proj)
    key, _ = _outputs_inputs(attention.k_proj)
    dense = sum(_matrices(layer))
    experts = _experts(layer)
    if not experts:
        return LayerShape(dense, query, key, hidden)
    used = next(
        (int(m.top_k) for m in layer.modules() if isinstance(getattr(m, "top_k", None), int)), None
    )
    if used is None:
        raise ValueError(
            f"the layers of {family} ({type(layer).__name__}) have experts, and no `top_k` says how many of them a "
            "token is sent to; their cost is not known"
        )
    count = experts[0].shape[0]
    stored = sum(part.numel() for part in experts)
    active = stored // count * used
    return LayerShape(
        dense + active,
        query,
        key,
        hidden,
        stored - active,
        1 - used / count,
    )


def _matrices(layer: nn.Module) -> Iterator[int]:
    """Sizes of the matrices that every token runs through.

    They are linear maps, and routers, which hold their matrix bare.
    """
    for module in layer.modules():
        if _is_linear(module):
            yield math.prod(_outputs_inputs(module))
        elif hasattr(module, "top_k"):
            yield from (p.numel() for p in module.parameters(recurse=False) if p.ndim == 2)


def _experts(layer: nn.Module) -> list[Tensor]:
    """The stacked matrices of experts (E, ., .), of which a token runs through `top_k`."""
    return [p for p in layer.parameters() if p.ndim == 3]


def tower_shape(
    parts: Iterable[nn.Module], projectors: Iterable[nn.Module], vision: Any
) -> TowerShape:
    """The shape of a tower; the longest stack of alike layers that attend is the tower's.

    Args:
        parts: all modules beside the decoder.
        projectors: those that run once per visual token.
        vision: the tower's configuration.
    """
    modules = [module for part in parts for module in part.modules()]
    stacks = [
        m
        for m in modules
        if isinstance(m, nn.ModuleList) and _attends(m) and len({type(b) for b in m}) == 1
    ]
    blocks: list[Any] = list(max(stacks, key=len, default=[]))
    convolution = next((m for m in modules if isinstance(m, nn.Conv2d | nn.Conv3d)), None)
    width = 0 if convolution is None else convolution.weight.shape[0]
    full = getattr(vision, "fullatt_block_indexes", None)
    return TowerShape(
        layers=tuple(LayerShape(_linear(block), width, width, width) for block in blocks),
        full=tuple(full is None or i in full for i in range(len(blocks))),
        patches=0 if convolution is None else convolution.weight.numel(),
        projector=sum(_per_token(m) for part in projectors for m in part.modules()),
        extra=sum(_classes(m) for m in modules),
        pool=next((_pool(m) for m in modules if hasattr(m, "probe")), None),
    )


def _pool(head: Any) -> LayerShape:
    """SigLIP's pooling head.

    Its one query is a parameter; keys and values of the patches are projected in addition.
    """
    width = head.probe.shape[-1]
    return LayerShape(2 * width * width + _linear(head.mlp), width, width, width)


def _linear(module: nn.Module) -> int:
    """Parameters of the matrices that multiply every token."""
    return sum(math.prod(_outputs_inputs(m)) for m in module.modules() if _is_linear(m))


def _per_token(module: nn.Module) -> int:
    """Parameters of the module's own matrix, or of its convolution, which run once per token."""
    if _is_linear(module):
        return math.prod(_outputs_inputs(module))
    return sum(p.numel() for p in module.parameters(recurse=False) if p.ndim in (2, 4))


def _is_linear(module: nn.Module) -> bool:
    """Whether it multiplies by one matrix, in whatever form it holds it.

    Quantised layers pack the matrix, or have none of that name; their numbers of features are those
    of the plain layer. An adapter's wrapper is not one: the layers inside it are.
    """
    features = (getattr(module, name, None) for name in ("in_features", "out_features"))
    return all(isinstance(n, int) for n in features) and not hasattr(module, "base_layer")


def _outputs_inputs(module: Any) -> tuple[int, int]:
    """Height and width of a linear map's matrix."""
    return int(module.out_features), int(module.in_features)


def _attends(stack: nn.ModuleList) -> bool:
    return any("attn" in n or "attention" in n for n, _ in stack.named_modules())


def _classes(module: nn.Module) -> int:
    """[CLS] tokens that an embedding adds."""
    names = ("class_embedding", "cls_token")
    return sum(isinstance(getattr(module, name, None), Tensor) for name in names)
