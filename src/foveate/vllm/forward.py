"""One step of the decoder inside vLLM: consult the methods, drop tokens, and shorten what deeper layers hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.forward_context import get_forward_context

from ..core.method import Method
from ..core.tokens import Kind
from ..core.view import View
from ..engine.attention.rows import replace_rows
from ..engine.cache.numbers import Numbers, each
from .anatomy import LAYER, Anatomy
from .evict import Evict
from .lookback import Projected, Reached, of_first_rank
from .metadata import Shortened
from .rows import Share
from .tower import TowerWatch


class Forward:
    """State of one step; the layers' pre-hooks drive it.

    Args:
        anatomy: of the model.
        shares: the requests of this step, in the order of their rows.
        shortened: makes the attention metadata of layers that hold fewer tokens.
        tower_watch: what the vision tower made of pictures, or None.
        evict: takes tokens out of caches, or None where no method drops while decoding.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        shares: Sequence[Share],
        shortened: Shortened,
        tower_watch: TowerWatch | None,
        evict: Evict | None,
    ) -> None:
        self.anatomy = anatomy
        self.depth = len(anatomy.layers)
        self.shares = shares
        self.shortened = shortened
        self.tower_watch = tower_watch
        self.evict = evict
        self.rows: Tensor | None = None  # of the step, that still run; None while all do
        self.positions: Tensor | None = None  # of these rows
        self.held: np.ndarray[Any, Any] | None = (
            None  # what layers lack, as the metadata in force has it
        )
        self.wanted = self._wanted()
        self.ran: dict[int, list[Projected | None]] = {}  # by layer, of each share
        self.stopped: Any = None  # the attention at which a projection is to stop
        self.bias: Tensor | None = None  # of the rows' keys in the layer that runs (R)

    def _wanted(self) -> set[int]:
        """Layers whose attention some method may ask for."""
        found: set[int] = set()
        for share in self._deciding():
            for method in share.request.methods:
                reach = method.needs.back
                acting = [layer for layer in range(self.depth) if method.acts(layer, share.step)]
                found.update(layer - back for layer in acting for back in range(1, reach + 1))
        return found

    def _deciding(self) -> list[Share]:
        return [share for share in self.shares if share.columns is not None]

    def before_layer(
        self, index: int, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """What layer `index` shall be called with, or None for what it was given."""
        given = {**dict(zip(LAYER, args, strict=False)), **kwargs}
        before = dict(given)
        if any(isinstance(value, Tensor) for key, value in given.items() if key not in LAYER):
            raise RuntimeError(f"layer {index} was called with tensors besides {', '.join(LAYER)}")
        for share in self._deciding():
            for method in share.request.methods:
                if method.acts(index, share.step):
                    self._consult(method, index, layer, share, given)
            if share.step == 0 and share.request.decodes and share.columns is not None:
                share.request.kept[index] = share.columns
        self._shorten(index)
        self.bias = self._bias(index, given["hidden_states"])
        if self.held is not None:
            self.shortened.put(get_forward_context(), self.anatomy.attentions[index].layer_name)
        if self.rows is not None:
            given["positions"] = self._positions(given["positions"])
        return None if all(given[key] is before[key] for key in LAYER) else ((), given)

    def _positions(self, whole: Tensor) -> Tensor:
        """Of the rows that run: (R), or (3 R) where they have time, height and width."""
        if self.positions is None:
            self.positions = whole[..., self.rows]
        return self.positions

    def _shorten(self, index: int) -> None:
        """Makes new metadata where layer `index` lacks other tokens than the one before it."""
        lacking = np.array([share.request.gone[index] for share in self.shares])
        if self.held is None and not lacking.any():
            return
        if self.held is not None and (lacking == self.held).all():
            return
        self.held = lacking
        self.shortened.change(
            np.array([share.count for share in self.shares]),
            np.array([share.length for share in self.shares]) - lacking,
            np.array([share.step == 0 and share.columns is not None for share in self.shares]),
        )

    def _bias(self, index: int, hidden: Tensor) -> Tensor | None:
        """What attention adds to products with the key of each row that layer `index` runs (R)."""
        weighing = [
            (share, numbers)
            for share in self._deciding()
            if share.step == 0 and (numbers := share.request.numbers[index]) is not None
        ]
        if not weighing:
            return None  # the keys of what is decoded speak for themselves
        bias = torch.zeros(len(hidden), device=hidden.device)
        for share, numbers in weighing:
            if share.columns is not None:
                bias[share.shown] = numbers.biases(share.columns[None])[0]
        return bias

    def _consult(
        self, method: Method, index: int, layer: Any, share: Share, given: dict[str, Any]
    ) -> None:
        """Lets a method decide on one request, and takes out the rows that it drops."""
        view = self._view(index, layer, share, given)
        if view.visual.shape[1] == 0:
            return
        found = method.select(view)
        if found is None:
            return
        # The prompt's last token stays: its state is the prompt's output, even if it is an image's.
        keep = of_first_rank(found.keep | (view.visual == view.newest))
        if bool(keep.all()):
            return
        if share.step:
            self._evict(method, index, share, view.visual[0][~keep[0]])
            return
        if method.merge is not None:
            states = replace_rows(
                view.hidden, view.place(), keep, method.merge(view, keep, found.counts)
            )
            self._write(share, given, states[0], view.place()[0][keep[0]])
        if method.weigh is not None:
            self._weigh(
                share,
                view,
                keep,
                of_first_rank(method.numbers(method.weigh, view, keep, found.counts)),
                method.weigh.strength,
            )
        self._drop(index, share, given, view.place()[0][~keep[0]])

    def _weigh(
        self, share: Share, view: View, keep: Tensor, numbers: Tensor, strength: float
    ) -> None:
        """New numbers of the kept tokens, in this layer and all deeper ones."""
        fresh = Numbers.ones(1, share.request.prompt, keep.device)
        old = [fresh if layer is None else layer for layer in share.request.numbers[view.layer :]]
        share.request.numbers[view.layer :] = each(
            old, lambda layer: layer.changed(view.visual, keep, numbers, strength)
        )

    def _evict(self, method: Method, index: int, share: Share, gone: Tensor) -> None:
        """Takes columns out of the caches of layer `index` and all deeper ones."""
        if self.evict is None:
            raise RuntimeError(f"{method.name} dropped tokens while decoding, unannounced")
        slots = self.shortened.slots_of(self.shares.index(share))
        for layer in range(index, self.depth):
            self.evict(method, share, layer, gone, slots)

    def _write(self, share: Share, given: dict[str, Any], states: Tensor, places: Tensor) -> None:
        """Puts merged states in: the stream that enters a layer is `hidden_states` + `residual`."""
        rows = share.start + places
        hidden: Tensor = given["hidden_states"].clone()
        hidden[rows] = of_first_rank(states[places].to(hidden))
        given["hidden_states"] = hidden
        if given["residual"] is not None:
            residual: Tensor = given["residual"].clone()
            residual[rows] = 0
            given["residual"] = residual

    def _drop(self, index: int, share: Share, given: dict[str, Any], places: Tensor) -> None:
        """Takes rows of a request out, from layer `index` on; `places` are among its rows."""
        total = self.shares[-1].start + self.shares[-1].count
        stay = torch.ones(total, dtype=torch.bool, device=given["hidden_states"].device)
        stay[share.start + places] = False
        kept = stay.nonzero()[:, 0]
        given["hidden_states"] = given["hidden_states"][kept]
        if given["residual"] is not None:
            given["residual"] = given["residual"][kept]
        self.rows = kept if self.rows is None else self.rows[kept]
        self.positions = None
        if share.columns is not None:
            mine = stay[share.start : share.start + share.columns.shape[0]]
            share.columns = share.columns[mine]
        share.count -= len(places)
        for other in self.shares:
            if other.start > share.start:
                other.start -= len(places)
        share.request.gone[index:] += len(places)

    def _view(self, index: int, layer: Any, share: Share, given: dict[str, Any]) -> View:
        """What a method may look at of one request: a batch of one, without padding."""
        request, columns = share.request, share.columns
        if request.tokens is None or columns is None:
            raise RuntimeError("a method was consulted on a request that has nothing to decide")
        hidden = given["hidden_states"][share.shown]
        if given["residual"] is not None:
            hidden = hidden + given["residual"][share.shown]
        length = share.length if share.step else request.prompt
        tokens = request.tokens.with_responses(length)
        alive = request.kept[index] if share.step else columns
        visual = alive[tokens.kind[0][alive] == int(Kind.IMAGE)]
        numbers = request.numbers[index]

        def coming(rotated: bool = True) -> Projected:
            whole = given["positions"] if self.rows is None else self._positions(given["positions"])
            positions = whole[..., share.shown]
            # Rotation by nothing is rotation by position 0.
            return self._projected(
                index, layer, share, hidden, positions if rotated else positions * 0
            )

        def ran(back: int) -> Projected:
            found = self.ran.get(back, [])
            before = found[self.shares.index(share)] if found else None
            if before is None:
                raise ValueError(
                    f"attention of layer {back} was not held back; a score that looks further back than the layer "
                    "before says so in its needs: `back` of foveate.Needs, the number of layers"
                )
            return self._with_cached(back, share, before, length) if share.step else before

        once: Callable[[], Projected] = _once(
            lambda: (
                self._with_cached(index, share, coming(), length - 1) if share.step else coming()
            )
        )
        return View(
            layer=index,
            step=share.step,
            layers=self.depth,
            total=request.total,
            visual=visual[None],
            mask=torch.ones_like(visual, dtype=torch.bool)[None],
            hidden=hidden[None],
            rows=columns[None],
            tokens=tokens,
            attend=lambda at, asked: (once() if at == index else ran(at)).attend(asked, length),
            notes=request.notes,
            look=None
            if self.tower_watch is None or share.step
            else self.tower_watch.look_of(share.pictures, request.prompt),
            recall=lambda at: ran(at).keys_by_column(length),
            project=lambda which, rotated: (once() if rotated else coming(False)).project(which),
            numbers=None if numbers is None else numbers.of(visual[None]),
        )

    def _projected(
        self, index: int, layer: Any, share: Share, hidden: Tensor, positions: Tensor
    ) -> Projected:
        """Queries and keys that layer `index` will make of a request's rows, by the layer's own code."""
        attention = self.anatomy.attentions[index]
        self.stopped = attention
        try:
            layer.self_attn(positions=positions, hidden_states=layer.input_layernorm(hidden))
        except Reached as reached:
            return self._heads(index, reached.queries, reached.keys, share)
        finally:
            self.stopped = None
        raise RuntimeError(f"layer {index} did not reach its attention")

    def _with_cached(self, index: int, share: Share, rows: Projected, length: int) -> Projected:
        """What a layer holds in its cache of the first `length` columns, and after it `rows`' keys if they are new."""
        if self.evict is None:
            raise RuntimeError("a method decides while decoding, unannounced")
        held = share.request.held(index, length)
        slots = self.shortened.slots_of(self.shares.index(share))(
            torch.arange(len(held), device=held.device)
        )
        keys = self.evict.paged.read(index, slots)[0][..., : self.anatomy.head_size(index)]
        if length < share.length:
            keys, held = torch.cat([keys, rows.keys]), torch.cat([held, rows.held])
        return replace(rows, keys=keys, held=held)

    def reached(self, index: int, queries: Tensor, keys: Tensor) -> None:
        """Called where layer `index` is about to attend.

        Raises:
            Reached: that is all that was wanted.
        """
        if self.stopped is self.anatomy.attentions[index]:
            raise Reached(queries, keys)
        if index in self.wanted:
            self.ran[index] = [
                None
                if share.columns is None
                else self._heads(index, queries[share.shown], keys[share.shown], share)
                for share in self.shares
            ]

    def _heads(self, index: int, queries: Tensor, keys: Tensor, share: Share) -> Projected:
        size = self.anatomy.head_size(index)
        asked, keys = (part.reshape(part.shape[0], -1, size) for part in (queries, keys))
        columns: Any = share.columns
        return Projected(
            self.anatomy.attentions[index],
            asked,
            keys,
            columns,
            columns,
            self.anatomy.key_heads(index),
            share.request.numbers[index],
        )

    def finish(self, output: Any, total: int) -> Any:
        """Gives dropped rows their place back in the output, as zeros."""
        if self.rows is None:
            return output
        if not isinstance(output, Tensor):
            raise RuntimeError(
                f"the model returned a {type(output).__name__}; expected its last hidden states"
            )
        whole = output.new_zeros((total, *output.shape[1:]))
        whole[self.rows] = output[: len(self.rows)]
        return whole


def _once(compute: Callable[[], Projected]) -> Callable[[], Projected]:
    found: list[Projected] = []

    def get() -> Projected:
        if not found:
            found.append(compute())
        return found[0]

    return get
