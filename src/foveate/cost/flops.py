"""FLOPs and KV bytes in closed form, from weight shapes and token counts; no model is run.

Convention: true FLOPs, 2 per multiply-accumulate; attention counted in full, not halved for
causality, as the papers do. Per decoder layer, n rows against c tokens before them: ``2 n
(parameters of the layer's matrices) + 4 n (c + n) d_attention`` (`engine.sizes.LayerShape.flops`,
the only place where it is written). Of a mixture of experts the parameters are those that a token
runs through. Equal to `torch.utils.flop_counter.FlopCounterMode` to the last FLOP on every family
(tests/oracles/test_every_cost.py); norms, activations and rotary embeddings are not counted, there
as here. What tower and projector cost is measured where a model runs (`vision`), and closed too
where none does (`architecture`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..core.method import Method
from ..core.schedules import number_kept
from ..core.weighing import Mean, Nearest, Uniform
from ..engine.anatomy import anatomy_of
from ..engine.sizes import LayerShape
from ..engine.trace import Pass, Trace


@dataclass(frozen=True)
class Shapes:
    """A decoder as its cost needs it; what the tower costs depends on the pictures (see `vision`).

    Attributes:
        layers: the decoder's.
        head: parameters of the language-model head.
        bytes: of one number in the KV cache.
        whole_head: whether `generate` runs the head on every row of a prompt, not on the last
            alone.
    """

    layers: tuple[LayerShape, ...]
    head: int
    bytes: int
    whole_head: bool = False

    def head_rows(self, text: float, visual: float) -> float:
        """Rows of a prompt that `generate` runs the head on; those of dropped tokens are zeros, and
        run too.
        """
        return text + visual if self.whole_head else 1


@dataclass(frozen=True)
class Cost:
    """FLOPs of a run, its parts apart, and the KV cache's size at its end.

    Attributes:
        tower: vision tower and projector.
        prefill: decoder layers over prompts.
        decode: decoder layers over generated tokens.
        head: language-model head.
        score: attention rows recomputed to rank tokens, in the decoder and in the vision tower, and
            what scores, schedules and merges say that they compute.
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
        return Cost(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )

    def ratio(self, other: Cost) -> dict[str, float]:
        """Every part over the same part of `other` (nan where that is 0), and "flops" over its sum."""
        parts = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        parts["flops"] = (self.flops, other.flops)
        return {
            name: mine / theirs if theirs else float("nan")
            for name, (mine, theirs) in parts.items()
        }


def shapes(model: Any) -> Shapes:
    """Reads the shapes off a model's weights (a model on the meta device will do).

    Raises:
        ValueError: the decoder is not a stack of layers whose cost is known.
    """
    anatomy = anatomy_of(model)
    return Shapes(anatomy.shapes, anatomy.head_size, anatomy.number_size, anatomy.whole_head)


def cost_of_trace(
    shape: Shapes, trace: Trace, *, tower: float = 0.0, all_logits: bool = False
) -> Cost:
    """What a recorded run really computed, all samples together.

    Padding, and the fills of ragged batches, are not counted: they are the batch's waste and not
    the samples' work.

    Args:
        shape: of the model.
        trace: from `apply`.
        tower: FLOPs of tower and projector, from `vision.vision_flops`.
        all_logits: whether the head ran on every row (a bare forward) or on the last alone
            (`generate`).

    Raises:
        ValueError: the trace has forgotten some forwards (`trace_last`).
    """
    total = Cost(tower=tower)
    kv = 0.0
    for done in trace.whole():
        parts = _parts(shape, done, trace.layers, all_logits)
        kv = parts.pop("kv_bytes").sum().item()
        total += Cost(**{name: values.sum().item() for name, values in parts.items()})
    return replace(total, kv_bytes=kv)


def costs_of_samples(shape: Shapes, trace: Trace, lengths: Sequence[int]) -> list[Cost]:
    """What each sample of one `generate` cost, up to the end of its own answer; the tower is not
    counted.

    A batch runs until its longest answer ends; what a sample's rows cost after its own end is its
    neighbours' doing.

    Args:
        shape: of the model.
        trace: of one batch: a prefill, then decode steps.
        lengths: new tokens of each sample, its end-of-sequence token included.
    """
    found = [Cost() for _ in lengths]
    for number, done in enumerate(trace.whole()):  # without a cache all are prefills, of step 0
        parts = {
            name: values.tolist()
            for name, values in _parts(shape, done, trace.layers, False).items()
        }
        for i in (i for i, length in enumerate(lengths) if number < length):
            grown = found[i] + Cost(**{name: values[i] for name, values in parts.items()})
            found[i] = replace(grown, kv_bytes=parts["kv_bytes"][i])
    return found


def _parts(shape: Shapes, done: Pass, depth: int, all_logits: bool) -> dict[str, Tensor]:
    """The parts of a `Cost` that one forward spends, each (B,); `kv_bytes` is what is held after
    it.
    """
    fresh, cached = (t.double() for t in done.visual(depth))
    text = done.text.cpu().double()
    past = done.past.cpu().double()
    flops = torch.zeros_like(text)
    kv = torch.zeros_like(text)
    for layer, f, c in zip(shape.layers, fresh, cached, strict=True):
        rows = text + f
        before = past + c
        flops += layer.flops(rows, before)
        kv += layer.cache(before + rows) * shape.bytes * done.cached
    score = torch.full_like(text, done.control + done.spent / len(text))
    for index, queries, keys, projected in done.asked:
        score += shape.layers[index].ranking(queries, keys, projected)
    out = text + done.new.cpu() if all_logits or shape.whole_head else torch.ones_like(text)
    return {
        "prefill" if done.step == 0 else "decode": flops,
        "head": 2 * shape.head * out,
        "score": score,
        "kv_bytes": kv,
    }


def cost_of_counts(
    shape: Shapes,
    kept: Sequence[float],
    *,
    text: int,
    new_tokens: int = 1,
    visual: float | None = None,
    tower: float = 0.0,
    asked: Sequence[int] = (),
    cuts: Sequence[Cut] = (),
) -> Cost:
    """The cost of one sample whose layer l attends to `kept[l]` visual tokens.

    Args:
        shape: of the model.
        kept: visual tokens per layer, as `kept_by` gives them for a method.
        text: prompt tokens that are not visual.
        new_tokens: tokens generated; the first comes out of the prefill.
        visual: visual tokens given, for the head where it runs on every row; None if layer 0 sees
            them all.
        tower: FLOPs of tower and projector.
        asked: layers of which one query row is recomputed to rank tokens.
        cuts: as `cuts_by` gives them. Where a method says whom a dropped token joins by how alike
            they are (weights or means by cosine), its cut adds one product of dropped x kept x
            width to `score`.

    Raises:
        ValueError: `kept` does not have one count per layer.
    """
    if len(kept) != len(shape.layers):
        raise ValueError(
            f"got {len(kept)} counts for a decoder of {len(shape.layers)} layers; expected one per layer"
        )
    prefill = sum(layer.flops(text + k) for layer, k in zip(shape.layers, kept, strict=True))
    decode = sum(
        layer.steps(new_tokens - 1, text + k) for layer, k in zip(shape.layers, kept, strict=True)
    )
    score = sum(shape.layers[i].ranking(1, text + kept[i]) for i in asked)
    score += sum(cut.comparing(shape) for cut in cuts)
    kv = sum(
        layer.cache(text + k + new_tokens - 1) for layer, k in zip(shape.layers, kept, strict=True)
    )
    rows = shape.head_rows(text, kept[0] if visual is None else visual) + new_tokens - 1
    return Cost(tower, prefill, decode, 2 * shape.head * rows, score, kv * shape.bytes)


class UnforeseenError(ValueError):
    """What methods keep depends on the input, so that no plan can say it."""


@dataclass(frozen=True)
class Cut:
    """What one method drops before one layer of a prefill, as its schedule plans it.

    Attributes:
        method: that drops.
        layer: the layer about to run.
        before: visual tokens that are there.
        kept: those that stay.
    """

    method: Method
    layer: int
    before: int
    kept: int

    def comparing(self, shape: Shapes) -> float:
        """FLOPs of comparing every dropped token with every kept one, where that decides whom it
        joins.

        The hidden states that enter the layer are compared, D wide: 2 dropped x kept x D for each
        rule of joining by cosine. Weights and means that go by one rule compare once.
        """
        merge = self.method.merge
        rules = {self.method.weigh, merge.by if isinstance(merge, Mean) else None}
        products = sum(isinstance(rule, Nearest | Uniform) for rule in rules)
        width = shape.layers[self.layer].hidden
        return 2.0 * products * (self.before - self.kept) * self.kept * width


def cuts_by(methods: Sequence[Method], layers: int, total: int) -> list[Cut]:
    """Where visual tokens leave in the prefill, by the plans of the schedules; in the order in
    which they do.

    Raises:
        UnforeseenError: a schedule has no plan.
        ValueError: a schedule does not fit the decoder.
    """
    plans = []
    for method in methods:
        plan = method.schedule.plan(total, layers)
        if plan is None:
            raise UnforeseenError(
                f"what {method.name} keeps depends on the input, so its cost cannot be told beforehand"
            )
        plans.append(plan)
    left = total
    found = []
    for layer in range(layers):
        # In the order of the methods, since a share is of what the others have left.
        for method, plan in zip(methods, plans, strict=True):
            keep = plan[layer]
            kept = min(left, number_kept(left if isinstance(keep, float) else total, keep))
            if kept < left:
                found.append(Cut(method, layer, left, kept))
            left = kept
    return found


def kept_by(methods: Sequence[Method], layers: int, total: int) -> list[int]:
    """Visual tokens that each layer of the prefill sees, by the plans of the schedules.

    Raises:
        UnforeseenError: a schedule has no plan.
        ValueError: a schedule does not fit the decoder.
    """
    found = [total] * layers
    for cut in cuts_by(methods, layers, total):
        found[cut.layer :] = [cut.kept] * (layers - cut.layer)
    return found
