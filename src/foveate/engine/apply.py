"""`apply`: run a stock transformers model with fewer visual tokens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core.method import Method
from ..core.tokens import classify
from ..core.view import View
from .adapters import Adapter
from .anatomy import anatomy_of
from .assumptions import Cache, DynamicCache, names_of
from .cache.layer import KeptLayer, adopt, not_ours
from .cache.ledger import Ledger
from .checks import check_call, check_model, check_tower, check_weights, special_masks
from .deepstack import DeepStack
from .forward import Forward, Setting
from .handover import CallState, padding_mask, placeholders, regular
from .modules import decoder_of
from .occupied import occupied
from .tower.form import known_tower
from .tower.watch import Watch, looked_at
from .trace import Pass, Trace


def apply(
    model: nn.Module, *methods: Method, watch: Callable[[View], None] | None = None
) -> AbstractContextManager[Trace]:
    """Applies methods to a model for the length of a ``with`` block.

    Inside, `model.generate(...)` and plain `model(...)` drop visual tokens as the methods decide.
    Logits and the last hidden state keep their shapes (dropped positions have a zero state there,
    so labels on the word after an image need that image's last token); `hidden_states` and
    `attentions` of each layer are as long as what ran in it. The last token of a prompt always
    stays, for its state is the output, even if it is an image's. Methods are consulted in order,
    and each sees what the one before left. Afterwards the model is as it was: hooks are removed,
    weights are never touched.

    Args:
        model: a vision-language model of a supported family, on any device, in any dtype.
        methods: what to apply; none at all only records a trace and uses the faster cache.
        watch: called with the `View` before every layer, before the methods decide there, and once
            more after the last (`view.layer == view.layers`, `view.hidden` is then the normalised
            output). It must change no tensor.

    Returns:
        A context manager; entering it gives the `Trace`.

    Raises:
        ValueError: a family, decoder, vision tower (where a score looks at it), attention backend
            or cache that is not supported, no visual tokens, a compiled model, gradient
            checkpointing, a schedule that does not fit.
        UnsupportedTransformersError: a ValueError; the installed transformers, or the model's own
            code, calls something otherwise than the engine takes for granted
            (`engine/assumptions.py`).
        RuntimeError: `apply` is already active on this model.
        TypeError: something among `methods` is not a `Method`.

    While it is active, a forward raises ValueError if its cache was filled outside `apply`, if
    sequences are packed, or if a prompt comes as embeddings in which no visual token can be told;
    and RuntimeError if another thread is in the middle of a forward of the same model.
    """
    anatomy = anatomy_of(model)
    adapter = anatomy.adapter
    body = anatomy.body
    _check_methods(methods, anatomy.depth, anatomy.family)
    check_model(anatomy.model, body, adapter)
    check_tower(body, looked_at(methods))
    check_weights(anatomy.decoder, methods)
    return _applied(adapter, body, methods, watch)


def _check_methods(methods: tuple[Method, ...], depth: int, family: str) -> None:
    """Refuses what does not fit.

    Raises:
        TypeError: something among them is no method.
        ValueError: a method does not fit a decoder of `depth` layers.
    """
    for method in methods:
        if not isinstance(method, Method):
            raise TypeError(
                f"got {type(method).__name__} {method!r}; expected a Method, e.g. foveate.methods.fastv()"
            )
        method.check(depth, family)


@contextmanager
def _applied(
    adapter: Adapter, body: Any, methods: tuple[Method, ...], watch: Callable[[View], None] | None
) -> Iterator[Trace]:
    instead = "pass several methods to one apply: apply(model, first, second)"
    with occupied(body, instead), ExitStack() as undo:
        engine = Engine(adapter, body, methods, watch)
        undo.callback(engine.detach)
        engine.attach()
        yield engine.trace


class Engine:
    """Hooks on one model, and what they share. Made by `apply`."""

    def __init__(
        self,
        adapter: Adapter,
        body: Any,
        methods: tuple[Method, ...],
        watch: Callable[[View], None] | None = None,
    ) -> None:
        self.adapter = adapter
        self.body = body
        self.methods = methods
        self.watch = watch
        self.decoder = decoder_of(body)
        self.depth = len(self.decoder.layers)
        self.trace = Trace(self.depth, tuple(m.name for m in methods))
        self.call = CallState()
        self.busy = threading.Lock()
        self.handles: list[Any] = []
        self.names = names_of(body, self.decoder)
        self.reach = max([1, *(method.needs.back for method in methods)])
        form = known_tower(body) if looked_at(methods) else None
        self.tower = (
            None
            if form is None
            else Watch(form, {form.index(layer) for layer in looked_at(methods)})
        )

    def attach(self) -> None:
        """Puts the hooks on."""
        self.handles = [
            self.body.register_forward_pre_hook(self._read_input, with_kwargs=True),
            self.decoder.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.decoder.register_forward_hook(self._end, always_call=True),
        ]
        for index, layer in enumerate(self.decoder.layers):
            self.handles.append(
                layer.register_forward_pre_hook(_LayerHook(self, index), with_kwargs=True)
            )
        if self.tower is not None:
            self.handles += self.tower.attach()

    def detach(self) -> None:
        """Takes the hooks off."""
        for handle in self.handles:
            handle.remove()
        self.handles = []
        self._abandon()

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        """Refused: a copy of the model would carry hooks that nobody takes off."""
        raise RuntimeError(
            "foveate.apply is active on this model; copy it outside of the with block"
        )

    def _abandon(self) -> None:
        """Lets go of a forward of this thread that was interrupted.

        Torch calls no hook for a KeyboardInterrupt.
        """
        forward = self.call.forward
        self.call.forward = None
        if forward is not None:
            forward.engage(False, whole=False)
            self.busy.release()

    def _read_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Notes which columns of the call are visual."""
        given = {**dict(zip(self.names.body, args, strict=False)), **kwargs}
        visual = self.adapter.visual_tokens(self.body.config)
        ids = given.get("input_ids")
        embeds = given.get("inputs_embeds")
        self.call.ids, self.call.mask = ids, given.get("attention_mask")
        self.call.regular = regular(self.body.config, given)
        if ids is not None:
            self.call.visual = torch.isin(ids, torch.tensor(visual, device=ids.device))
        elif embeds is not None:
            self.call.visual = placeholders(embeds, visual, self.body.get_input_embeddings())

    def _begin(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        visual = self.call.visual
        self.call.visual = None
        self._abandon()
        self.call.refused = True
        if visual is None:
            raise ValueError(
                "the language model was called directly, so nobody can tell which tokens are visual; "
                "call the whole model"
            )
        if not self.busy.acquire(blocking=False):
            raise RuntimeError(
                "two threads run the model at once under one foveate.apply; let them take turns, "
                "or give each its own model"
            )
        try:
            kwargs = self.names.by_name(args, kwargs)
            padding = padding_mask(kwargs.get("attention_mask"), self.call.mask)
            check_call(self.decoder, kwargs.get("position_ids"), padding)
            cache = self._cache(kwargs)
            kwargs = self.names.with_cache(kwargs, cache)
            deep, kwargs = DeepStack.taken_from(kwargs)
            self.call.forward = self._forward(visual, kwargs, cache, padding, deep)
            self.call.forward.engage(True)
        except BaseException:
            self.busy.release()
            raise
        self.call.refused = False
        return (), kwargs

    def _cache(self, kwargs: dict[str, Any]) -> Cache | None:
        cache = self.names.given_cache(kwargs)
        wanted = kwargs.get("use_cache")
        wanted = self.decoder.config.use_cache if wanted is None else wanted
        if cache is None and not wanted:
            return None
        if cache is None:
            cache = DynamicCache(config=self.decoder.config)
        adopt(cache, self.depth, self.names.cache)
        return cache

    def _forward(
        self,
        visual: Tensor,
        kwargs: dict[str, Any],
        cache: Cache | None,
        mask: Tensor | None,
        deep: DeepStack | None,
    ) -> Forward:
        count = visual.shape[1]
        old, first = _known(cache, self.names.cache)
        if mask is not None and mask.shape[1] != first + count:
            raise ValueError(
                f"attention_mask has {mask.shape[1]} columns; expected {first + count}: {first} seen and {count} new"
            )
        if self.call.ids is None and self.methods and old is None and not bool(visual.any()):
            raise ValueError(
                "the prompt came as inputs_embeds, and none of them is the image placeholder's, so nobody can tell "
                "which tokens are visual; give input_ids and pixel_values, or, for text alone, run outside of apply"
            )
        real = None if mask is None else mask.to(visual.device).bool()
        ledger = self._ledger(old, visual, None if real is None else real[:, first:])
        if cache is None:
            ledger = replace(
                ledger, tokens=ledger.tokens.responding_from(self.call.prompt_columns(count))
            )
        fresh = ledger.total if old is None else ledger.total - old.total
        past = torch.zeros_like(fresh) if old is None else old.text
        cuts = (
            [(layer, fresh, alive) for layer, alive in old.alive]
            if old is not None
            else [(0, fresh, fresh * 0)]
        )
        record = Pass(
            ledger.step, ledger.text - past, past, ledger.total, cuts, fresh, cache is not None
        )
        backend = self.decoder.config._attn_implementation
        special = special_masks(self.adapter, self.decoder.config)
        sight = (
            None
            if self.tower is None
            else self.tower.sight(kwargs["inputs_embeds"], visual, first, record.spend)
        )
        setting = Setting(
            adapter=self.adapter,
            methods=self.methods,
            watch=self.watch,
            layers=self.depth,
            backend=backend,
            special=special,
            cache_name=self.names.cache,
            reach=self.reach,
        )
        return Forward(
            setting,
            ledger=ledger,
            first=first,
            count=count,
            real=real,
            cache=cache,
            record=record,
            deep=deep,
            sight=sight,
        )

    def _ledger(self, old: Ledger | None, visual: Tensor, real: Tensor | None) -> Ledger:
        """The conversation with the columns of this forward added."""
        count = visual.shape[1]
        if old is not None and count == 1:
            text = old.text + (1 if real is None else real[:, 0])
            return replace(old, columns=old.columns + 1, step=old.step + 1, text=text)
        here = torch.ones_like(visual) if real is None else real
        tokens = classify(
            visual,
            here,
            per_image=self.adapter.per_image(self.body.config) if self.call.regular else None,
            grid=self.adapter.grid(self.body.config) if self.call.regular else None,
            opening=old is None,
        )
        total = visual.sum(1)
        text = (here & ~visual).sum(1)
        if old is None:
            return Ledger(tokens, count, 0, total, text)
        known = old.tokens.with_responses(old.columns).extended(tokens)
        return replace(
            old,
            tokens=known,
            columns=old.columns + count,
            step=0,
            total=old.total + total,
            text=old.text + text,
        )

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self.call.refused:  # `_begin` raised: the forward under way, if any, is another one
            self.call.refused = False
            return output
        forward = self.call.forward
        self.call.forward = None
        if forward is None:
            return output
        whole = False
        try:
            if output is None:  # the forward raised
                return output
            last = forward.finish(self.names.last_state(output))
            if forward.cache is not None:
                self.names.check_returned(output, forward.cache)
            self.trace.passes.append(forward.record)
            whole = True
            if isinstance(output, tuple):
                return (last, *output[1:])
            output["last_hidden_state"] = last
            return output
        finally:
            forward.engage(False, whole)
            self.busy.release()


class _LayerHook:
    """Pre-hook of decoder layer `index`."""

    def __init__(self, engine: Engine, index: int) -> None:
        self.engine = engine
        self.index = index

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        forward = self.engine.call.forward
        return None if forward is None else forward.before_layer(self.index, module, args, kwargs)


def _known(cache: Cache | None, name: str) -> tuple[Ledger | None, int]:
    """The ledger that travels with a cache, and the columns it covers.

    `name` is what errors call the cache.
    """
    if cache is None or cache.get_seq_length() == 0:
        return None, 0
    first = cache.layers[0]
    if getattr(first, "broken", False):
        raise ValueError(
            f"the last forward with this {name} failed halfway, so its layers hold different tokens; start "
            "from a new cache"
        )
    if not isinstance(first, KeptLayer) or first.ledger is None:
        raise ValueError(not_ours(name, cache))
    return first.ledger, cache.get_seq_length()
