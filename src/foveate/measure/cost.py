"""FLOPs and KV bytes in closed form, from weight shapes and token counts; no model is run.

Convention: true FLOPs, 2 per multiply-accumulate; attention counted in full, not halved for causality, as the
papers do. Per decoder layer, n rows against c tokens before them: ``2 n (parameters of the layer's matrices) +
4 n (c + n) d_attention``. Equal to `torch.utils.flop_counter.FlopCounterMode` to the last FLOP (see the tests);
norms, activations and rotary embeddings are not counted, there as here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from ..core.method import Method
from ..core.tokens import classify
from ..core.view import View
from ..engine.adapters import adapter_for
from ..engine.trace import Trace


@dataclass(frozen=True)
class LayerShape:
    """One transformer layer: parameters of its matrices, and sizes of its attention."""

    matrices: int
    query: int  # heads x head size
    key: int  # key-value heads x head size
    hidden: int

    def flops(self, rows: float, before: float = 0) -> float:
        """Of `rows` new tokens that attend to `before` earlier ones and to themselves."""
        return 2 * rows * self.matrices + 4 * rows * (before + rows) * self.query


@dataclass(frozen=True)
class Shapes:
    """A vision-language model as its cost needs it.

    Attributes:
        layers: the decoder's.
        head: parameters of the language-model head.
        tower: FLOPs of one picture (one tile) through tower and projector.
        bytes: of one number in the KV cache.
    """

    layers: tuple[LayerShape, ...]
    head: int
    tower: float
    bytes: int


@dataclass(frozen=True)
class Cost:
    """FLOPs of a run, its parts apart, and the KV cache's size at its end.

    Attributes:
        tower: vision tower and projector.
        prefill: decoder layers over prompts.
        decode: decoder layers over generated tokens.
        head: language-model head.
        score: attention rows recomputed to rank tokens, in the decoder and in the vision tower, and what scores,
            schedules and merges say that they compute.
        kv_bytes: bytes of keys and values at the end, all samples together (not FLOPs).
    """

    tower: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    head: float = 0.0
    score: float = 0.0
    kv_bytes: float = 0.0

    @property
    def flops(self) -> float:
        """All FLOPs together."""
        return self.tower + self.prefill + self.decode + self.head + self.score

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def ratio(self, other: Cost) -> dict[str, float]:
        """Every part over the same part of `other` (nan where that is 0), and "flops" over its sum."""
        parts = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        parts["flops"] = (self.flops, other.flops)
        return {name: mine / theirs if theirs else float("nan") for name, (mine, theirs) in parts.items()}


def shapes(model: Any) -> Shapes:
    """Reads the shapes off a model's weights (a model on the meta device will do).

    Raises:
        ValueError: unknown family.
    """
    body = adapter_for(model).body(model)
    head = model.get_output_embeddings()
    first = next(body.language_model.parameters())
    return Shapes(
        layers=tuple(layer_shape(layer) for layer in body.language_model.layers),
        head=0 if head is None else head.weight.numel(),
        tower=_tower_flops(body),
        bytes=first.element_size(),
    )


def layer_shape(layer: Any) -> LayerShape:
    """The shape of a decoder layer with `self_attn.{q,k,v,o}_proj` and linear maps elsewhere."""
    matrices = sum(m.weight.numel() for m in layer.modules() if isinstance(m, nn.Linear))
    attention = layer.self_attn
    query, hidden = attention.q_proj.weight.shape
    return LayerShape(matrices, query, attention.k_proj.weight.shape[0], hidden)


def _tower_flops(body: Any) -> float:
    """A CLIP-like tower over one picture, and the projector over its tokens."""
    tower, config = body.vision_tower, body.config.vision_config
    patches = (config.image_size // config.patch_size) ** 2
    convolution = next(m for m in tower.modules() if isinstance(m, nn.Conv2d))
    positions = next(m for m in tower.modules() if isinstance(m, nn.Embedding)).weight.shape[0]
    flops = 2.0 * patches * convolution.weight.numel()
    for layer in (m for m in tower.modules() if hasattr(m, "self_attn")):
        matrices = sum(m.weight.numel() for m in layer.modules() if isinstance(m, nn.Linear))
        flops += LayerShape(matrices, config.hidden_size, config.hidden_size, config.hidden_size).flops(positions)
    projector = sum(m.weight.numel() for m in body.multi_modal_projector.modules() if isinstance(m, nn.Linear))
    return flops + 2.0 * patches * projector


def cost_of_trace(shape: Shapes, trace: Trace, *, pictures: int = 0, all_logits: bool = False) -> Cost:
    """What a recorded run really computed, all samples together.

    Padding, and the fills of ragged batches, are not counted: they are the batch's waste and not the samples' work.

    Args:
        shape: of the model.
        trace: from `apply`.
        pictures: how many pictures (tiles) went through the tower.
        all_logits: whether the head ran on every row (a bare forward) or on the last alone (`generate`).
    """
    prefill = decode = head = score = 0.0
    kv = 0.0
    for done in trace.passes:
        fresh, cached = (t.double() for t in done.visual(trace.layers))
        text, past = done.text.cpu().double(), done.past.cpu().double()
        flops = 0.0
        for layer, f, c in zip(shape.layers, fresh, cached, strict=True):
            rows, before = text + f, past + c
            flops += (2 * rows * layer.matrices + 4 * rows * (before + rows) * layer.query).sum().item()
        prefill, decode = (prefill + flops, decode) if done.step == 0 else (prefill, decode + flops)
        rows_out = (text + done.new.cpu()).sum().item()
        head += 2 * shape.head * (rows_out if all_logits else len(text))
        for index, queries, keys, projected in done.asked:
            layer = shape.layers[index]
            score += len(text) * queries * (2 * layer.hidden * layer.query + 2 * layer.query * keys)
            score += len(text) * projected * 2 * layer.hidden * layer.key
        score += len(text) * done.control + done.spent
        held = (past + text + fresh + cached).sum(1) * done.cached
        kv = sum(2 * layer.key * h * shape.bytes for layer, h in zip(shape.layers, held.tolist(), strict=True))
    return Cost(pictures * shape.tower, prefill, decode, head, score, kv)


def cost_of_counts(
    shape: Shapes, kept: Sequence[int], *, text: int, new_tokens: int = 1, pictures: int = 1, asked: Sequence[int] = ()
) -> Cost:
    """The cost of one sample whose layer l attends to `kept[l]` visual tokens.

    Args:
        shape: of the model.
        kept: visual tokens per layer, as `kept_by` gives them for a method.
        text: prompt tokens that are not visual.
        new_tokens: tokens generated; the first comes out of the prefill.
        pictures: pictures (tiles) through the tower.
        asked: layers of which one query row is recomputed to rank tokens.

    Raises:
        ValueError: `kept` does not have one count per layer.
    """
    if len(kept) != len(shape.layers):
        raise ValueError(f"got {len(kept)} counts for a decoder of {len(shape.layers)} layers; expected one per layer")
    prefill = sum(layer.flops(text + k) for layer, k in zip(shape.layers, kept, strict=True))
    decode = sum(
        layer.flops(1, text + k + t) for layer, k in zip(shape.layers, kept, strict=True) for t in range(new_tokens - 1)
    )
    score = sum(
        2 * shape.layers[i].hidden * shape.layers[i].query + 2 * shape.layers[i].query * (text + kept[i]) for i in asked
    )
    held = [(text + k + new_tokens - 1) for k in kept]
    kv = sum(2 * layer.key * h * shape.bytes for layer, h in zip(shape.layers, held, strict=True))
    return Cost(pictures * shape.tower, prefill, decode, 2 * shape.head * new_tokens, score, kv)


def kept_by(methods: Sequence[Method], layers: int, total: int) -> list[int]:
    """Visual tokens that each layer of the prefill sees, from the schedules alone.

    Raises:
        ValueError: a schedule looks at attention or hidden states, so that its counts depend on the input.
    """
    left, found = total, []
    for layer in range(layers):
        for method in methods:
            if method.drops(layer, 0):
                left = min(left, int(method.schedule(_blank_view(layer, layers, total, left))[0]))
        found.append(left)
    return found


def _blank_view(layer: int, layers: int, total: int, left: int) -> View:
    visual = torch.ones(1, total, dtype=torch.bool)
    columns = torch.arange(left)[None]
    return View(
        layer=layer,
        step=0,
        layers=layers,
        total=torch.tensor([total]),
        visual=columns,
        mask=columns >= 0,
        hidden=torch.zeros(1, left, 0),
        rows=columns,
        tokens=classify(visual, visual),
    )


def fastv_ratio(shape: Shapes, *, tokens: int, visual: int, layer: int, keep: float, width: int) -> float:
    """FastV's own FLOPs ratio, for comparison with papers (2403.06764, Section 4.2).

    ``[K C(n) + (L - K) C(n')] / (L C(n))`` with ``C(n) = 4 n d^2 + 2 n^2 d + 2 n d m`` and ``n' = n - R N``.

    Args:
        shape: of the model.
        tokens: n, the prompt's tokens, visual ones included.
        visual: N, the visual ones.
        layer: the paper's K.
        keep: share of visual tokens kept (1 - R).
        width: m, the MLP's inner size.
    """
    hidden, layers = shape.layers[0].hidden, len(shape.layers)

    def count(n: float) -> float:
        return 4 * n * hidden**2 + 2 * n**2 * hidden + 2 * n * hidden * width

    fewer = tokens - (1 - keep) * visual
    return (layer * count(tokens) + (layers - layer) * count(fewer)) / (layers * count(tokens))
