"""What the vision tower made of pictures, for methods that look at it.

vLLM runs the tower for many pictures at once and caches what it made of each. Hooks keep queries,
keys and values of the layers that methods look at, beside that cache and as long as it. A token
finds its patches as in the other engine: the embeddings of a picture are, bit for bit, rows of what
the projector gave out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from vllm.model_executor.layers.attention import MMEncoderAttention

from ..core.tower import Layer, What
from ..engine.modules import first_of, multimodal_body, projector_of, tower_of
from ..engine.tower.form import NORMS, READ, TowerForm, has_summary, last_read, stack_of
from ..engine.tower.watch import CHUNK, found_among
from .lookback import all_heads


@dataclass
class AttentionCall:
    """What a layer's attention was called with: (I T H E), or (S H E) where pictures are packed.

    Attributes:
        queries: of the layer.
        keys: of the layer; rotated, as the queries, where the tower rotates.
        values: of the layer.
        ends: where the pictures, or their windows, end among packed rows; None where they are not packed.
        out: the layer's output, (I T D) or (S D).
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    ends: Tensor | None
    out: Tensor | None = None


@dataclass
class TowerRun:
    """One run of the tower. `tokens` is what the projector made of it, (R D)."""

    seen: dict[int, AttentionCall] = field(default_factory=dict)
    tokens: Tensor | None = None
    pictures: int = 1


@dataclass
class EncodedPicture:
    """A picture in vLLM's encoder cache.

    Attributes:
        runs: of the tower, that were under way when it was read.
        index: for each of its embeddings, its place among the runs' tokens; -1 for none.
    """

    runs: tuple[TowerRun, ...]
    index: Int[Tensor, n]


class TowerWatch:
    """What the tower made of each picture in vLLM's encoder cache.

    Args:
        form: of the tower.
        attentions: vLLM's attention of each layer.
        wanted: layers at which methods look.
    """

    def __init__(self, form: TowerForm, attentions: Sequence[Any], wanted: set[int]) -> None:
        self.form = form
        self.attentions = attentions
        self.wanted = wanted
        self.runs: list[TowerRun] = []
        self.pictures: dict[str, EncodedPicture] = {}

    @staticmethod
    def of(model: Any, config: Any, layers: Sequence[Layer]) -> TowerWatch | None:
        """Watches these layers of the tower; None if there are none.

        Raises:
            ValueError: the tower is not of a form whose attention can be read.
        """
        if not layers:
            return None
        body = multimodal_body(model)
        tower, projector = tower_of(body), projector_of(body, READ)
        stack = stack_of(tower, lambda layer: _attention(layer) is not None)
        if stack is None or projector is None:
            raise ValueError(
                f"a method looks at the vision tower, but that of {type(model).__name__} ({type(tower).__name__}, "
                f"projector {type(projector).__name__}) is not of a form that can be read inside vLLM; use a method "
                "that needs no tower, such as divprune"
            )
        packed = "cu_seqlens" in type(stack[0]).forward.__code__.co_varnames
        depth = int(
            getattr(config.vision_config, "num_hidden_layers", None) or config.vision_config.depth
        )
        # vLLM builds no more layers than are read; numbers and fractions are of the whole depth.
        whole = (*stack, *[None] * (depth - len(stack)))
        form = TowerForm(whole, last_read(config, depth), projector, has_summary(tower), packed)
        wanted = {form.index(layer) for layer in layers}
        if max(wanted) >= len(stack):
            raise ValueError(
                f"a method looks at tower layer {max(wanted)}; vLLM runs only the first {len(stack)}"
            )
        return TowerWatch(form, [_attention(layer) for layer in stack], wanted)

    def attach(self, runner: Any) -> None:
        """Puts the hooks on."""
        _after(self.form.projector, self._tokens)
        for index in self.wanted:
            attention = self.attentions[index]
            attention.register_forward_pre_hook(partial(self._attends, index), with_kwargs=True)
            _after(self.form.layers[index], partial(self._leaves, index))
        cache, drop = runner._cache_encoder_output, runner._process_encoder_cache_scheduler_output

        def cached(name: str, output: Any, *rest: Any, **more: Any) -> Any:
            self._note(name, output)
            return cache(name, output, *rest, **more)

        def dropped(scheduled: Any) -> None:
            drop(scheduled)
            self.runs = []
            for name in self.pictures.keys() - runner.encoder_cache.keys():
                del self.pictures[name]

        runner._cache_encoder_output = cached
        runner._process_encoder_cache_scheduler_output = dropped

    def _open(self) -> TowerRun:
        """The run under way."""
        if not self.runs or self.runs[-1].tokens is not None:
            self.runs.append(TowerRun())
        return self.runs[-1]

    def _attends(
        self, index: int, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        given = {**dict(zip(("query", "key", "value", "cu_seqlens"), args, strict=False)), **kwargs}
        parts = [given[name] for name in ("query", "key", "value")]
        parts = [part.reshape(*part.shape[:2], -1, module.head_size) for part in parts]
        if self.form.packed:
            parts = [part.flatten(0, 1) for part in parts]
        queries, keys, values = parts
        self._open().seen[index] = AttentionCall(queries, keys, values, given.get("cu_seqlens"))

    def _leaves(self, index: int, output: Any) -> None:
        out = output[0] if isinstance(output, tuple) else output
        self._open().seen[index].out = out.reshape(-1, out.shape[-1]) if self.form.packed else out

    def _tokens(self, output: Any) -> None:
        run = self._open()
        run.pictures = 1 if self.form.packed or output.ndim < 3 else output.shape[0]
        run.tokens = output.detach().reshape(-1, output.shape[-1])

    def _note(self, name: str, output: Any) -> None:
        runs = tuple(run for run in self.runs if run.tokens is not None)
        rows = output.reshape(-1, output.shape[-1])
        known = [run.tokens for run in runs if run.tokens is not None]
        if not known or known[0].shape[1] > rows.shape[1]:
            return  # a dry run, or embeddings that came without the tower: `look_of` refuses them
        # DeepStack's features of other layers stand beside the tokens.
        rows = rows[:, : known[0].shape[1]]
        self.pictures[name] = EncodedPicture(runs, found_among(rows, torch.cat(known)))

    def look_of(
        self, pictures: Sequence[tuple[str, Int[Tensor, n]]], length: int
    ) -> Callable[[What, Layer, Tensor], Tensor]:
        """What a view of a prompt may look at; see `core.tower.Tower`.

        Args:
            pictures: names of its pictures, and the columns of each.
            length: of the prompt.
        """

        def look(what: What, layer: Layer, columns: Int[Tensor, "1 N"]) -> Float[Tensor, "1 N *K"]:
            parts, places = [], []
            for name, at in pictures:
                if name not in self.pictures:
                    raise ValueError(
                        "a method looks at the vision tower, but a picture came as embeddings, without going through it"
                    )
                parts.append(self._of(self.pictures[name], what, layer))
                places.append(at)
            where, values = torch.cat(places), torch.cat(parts)
            table = values.new_zeros((length, *values.shape[1:]))
            table[where] = values
            return table[columns[0]][None]

        return look

    def _of(self, picture: EncodedPicture, what: What, layer: Layer) -> Tensor:
        """Of each embedding of a picture; zeros where it comes from no patch."""
        known = picture.index >= 0
        if what == "known":
            return known.float()
        index = self.form.index(layer)
        values = torch.cat([self._of_run(run, what, index) for run in picture.runs])
        found = values[picture.index.clamp(min=0)]
        return found * known.view(-1, *([1] * (found.ndim - 1)))

    def _of_run(self, run: TowerRun, what: What, index: int) -> Tensor:
        seen = run.seen[index]
        skip = 0 if self.form.packed else int(self.form.summary)
        if what == "attention":
            found = all_heads(self._received(index, seen), 1)
        elif what == "states" and seen.out is not None:
            found = seen.out if self.form.packed else seen.out[:, skip:].flatten(0, 1)
        else:
            part = seen.keys if what == "keys" else seen.values
            found = all_heads(part if self.form.packed else part[:, skip:].flatten(0, 1), 1)
        count = 0 if run.tokens is None else len(run.tokens)
        groups = self.form.patches(len(found), count, run.pictures).to(found.device)
        values = found.float()[groups.clamp(min=0)]
        return (values * (groups >= 0).view(*groups.shape, *([1] * (values.ndim - 2)))).mean(1)

    def _received(self, index: int, seen: AttentionCall) -> Float[Tensor, "P H"]:
        scale = self.attentions[index].scale
        if self.form.summary:  # how much the [CLS] row looks at each patch
            paid = _rows(seen.queries[:, :1], seen.keys, scale)
            return paid[:, :, 0, 1:].transpose(1, 2).flatten(0, 1)
        if seen.ends is None:
            pieces = [(seen.queries[i], seen.keys[i]) for i in range(len(seen.keys))]
        else:
            sizes = (seen.ends[1:] - seen.ends[:-1]).tolist()
            pieces = list(
                zip(torch.split(seen.queries, sizes), torch.split(seen.keys, sizes), strict=True)
            )
        longest = max(len(keys) for _, keys in pieces)
        found = []
        for (
            queries,
            keys,
        ) in pieces:  # how much all patches of a picture, or of its window, look at each
            chunks = [
                _rows(part[None], keys[None], scale)[0].sum(1)
                for part in torch.split(queries, CHUNK)
            ]
            found.append(torch.stack(chunks).sum(0).T / longest)
        return torch.cat(found)


def _after(module: Any, look: Callable[[Any], None]) -> None:
    """Shows `look` what a module gives out.

    Where vLLM could compile a module, but does not, it calls `forward` past the module's hooks.
    """
    forward = module.forward

    def forwarded(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        look(output)
        return output

    module.forward = forwarded


def _attention(layer: Any) -> Any:
    """The attention inside a tower's layer of a form that can be read, or None."""
    if first_of(layer, NORMS) is None:
        return None  # as Pixtral's, in which pictures are one sequence behind a mask
    return next((part for part in layer.modules() if isinstance(part, MMEncoderAttention)), None)


def _rows(
    queries: Float[Tensor, "I Q H E"], keys: Float[Tensor, "I T H E"], scale: float
) -> Float[Tensor, "I H Q T"]:
    """Softmax of the scaled products, in float32."""
    products = queries.float().transpose(1, 2) @ keys.float().permute(0, 2, 3, 1)
    return (products * scale).softmax(-1)
