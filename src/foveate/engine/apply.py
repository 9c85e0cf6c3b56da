"""`apply` and `enable`: run a stock transformers model with fewer visual tokens."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..core.method import Method
from ..core.tokens import classify
from ..core.view import View
from ..methods import as_methods
from .adapters import Adapter
from .anatomy import Anatomy, anatomy_of
from .assumptions import Cache, DynamicCache, StaticCache, names_of
from .cache.layer import KeptLayer, adopt, not_ours
from .cache.ledger import Ledger
from .cache.static import freeze, make_ready, steps_over
from .checks import (
    check_call,
    check_model,
    check_static,
    check_tower,
    check_weights,
    check_whole_images,
    special_masks,
)
from .compiled import Compiled
from .deepstack import DeepStack
from .forward import Forward, LayerHook, Setting
from .handover import CallState, padding_mask, placeholders, regular, within
from .modules import decoder_of
from .occupied import free, occupy
from .steps import Steps
from .tower.form import known_tower
from .tower.watch import Watch, looked_at
from .trace import Pass, Trace

Threads = Literal["refuse", "wait"]
TRACE_LAST = 256  # forwards that the trace of `enable` holds

INSTEAD = (
    "pass several methods to one apply: apply(model, first, second). What foveate.enable began ends by "
    "foveate.disable(model)"
)
# What is on which model. The hooks hold the engine, so both go with the model.
_ACTIVE: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Engine]] = weakref.WeakKeyDictionary()


def apply(
    model: nn.Module,
    *methods: Method | str,
    watch: Callable[[View], None] | None = None,
    trace_last: int | None = None,
    threads: Threads = "refuse",
) -> Handle:
    """Applies methods to a model for the length of a ``with`` block.

    Inside, `model.generate(...)`, plain `model(...)` and transformers' pipelines around the model
    drop visual tokens as the methods decide.
    Logits and the last hidden state keep their shapes (dropped positions have a zero state there,
    so labels on the word after an image need that image's last token); `hidden_states` and
    `attentions` of each layer are as long as what ran in it. The last token of a prompt always
    stays, for its state is the output, even if it is an image's. Methods are consulted in order,
    and each sees what the one before left. Afterwards the model is as it was: hooks are removed,
    weights are never touched.

    Args:
        model: a vision-language model of a supported family, on any device, in any dtype.
        methods: what to apply, as `Method` objects or as text such as
            ``"divprune:keep=0.125,weigh=nearest,merge=mean"``; none at all only records a trace and
            uses the faster cache.
        watch: called with the `View` before every layer, before the methods decide there, and once
            more after the last (`view.layer == view.layers`, `view.hidden` is then the normalised
            output). It must change no tensor.
        trace_last: how many forwards the trace holds; its means count all. None, the default, holds
            all, which suits a block that ends.
        threads: what happens to a thread that calls the model while another one runs it: "refuse"
            raises RuntimeError; "wait" lets forwards take turns, as a threaded server needs.

    Returns:
        A context manager; entering it gives the `Trace`. It may be entered again, one time after
        the other, and starts a new trace each time.

    Raises:
        ValueError: a family, decoder, vision tower (where a score looks at it), attention backend
            or cache that is not supported, no visual tokens, a compiled model, gradient
            checkpointing, a schedule that does not fit, a text that names no method, or a
            `trace_last` or `threads` out of range.
        UnsupportedTransformersError: a ValueError; the installed transformers, or the model's own
            code, calls something otherwise than the engine takes for granted
            (`engine/assumptions.py`).
        RuntimeError: when entered, if `apply` or `enable` is already active on this model.
        TypeError: something among `methods` is neither a `Method` nor text.

    `generate(cache_implementation="static")` works where methods decide in the prefill alone, with
    sdpa or eager attention; transformers then compiles decode steps as it does without methods.
    The trace gets these steps when the next prompt comes, or the block ends.

    A prompt may come in pieces (chunked prefill). Each piece is judged by its own last token, which
    stays, and by the images so far. So pieces equal the whole prompt where they end in text and
    methods look at each image alone. An image in two pieces is refused.

    While it is active, a forward raises ValueError if its cache was filled outside `apply`, if an
    image comes in two pieces, if sequences are packed, or if a prompt comes as embeddings in which
    no visual token can be told; and, with ``threads="refuse"``, RuntimeError if another thread is
    in the middle of a forward of the same model.
    """
    handle = Handle(model, as_methods(methods), watch, trace_last, threads)
    handle.check()
    return handle


def enable(
    model: nn.Module,
    *methods: Method | str,
    watch: Callable[[View], None] | None = None,
    trace_last: int | None = TRACE_LAST,
    threads: Threads = "refuse",
) -> Handle:
    """Applies methods to a model until `Handle.disable` or `disable` ends it: `apply` without a block.

    It is meant for servers and notebooks. A server whose threads share the model takes
    ``threads="wait"``; the trace then has their forwards in the order in which they ran.

    Args:
        model: as for `apply`.
        methods: as for `apply`.
        watch: as for `apply`.
        trace_last: as for `apply`, but 256 forwards by default, so that memory does not grow.
        threads: as for `apply`.

    Returns:
        The switch: `handle.disable()`, `handle.trace`.

    Raises:
        ValueError, TypeError, RuntimeError: as `apply`, and as entering it.
    """
    handle = apply(model, *methods, watch=watch, trace_last=trace_last, threads=threads)
    return handle.enable()


def disable(model: nn.Module) -> None:
    """Ends what `enable` began on a model; the model is then as it was.

    Raises:
        RuntimeError: nothing is enabled on it, or a with block of `apply` is active, which ends by itself.
    """
    found = _ACTIVE.get(anatomy_of(model).body)
    engine = None if found is None else found()
    if engine is None:
        raise RuntimeError("nothing is enabled on this model; foveate.enable(model, ...) does it")
    if engine.in_block:
        raise RuntimeError(
            "foveate.apply is active on this model in a with block, whose end takes the methods off"
        )
    engine.detach()


class Handle(AbstractContextManager[Trace]):
    """Methods for a model, which can be put on it and taken off, as often as wanted.

    Made by `apply` and `enable`.

    Attributes:
        model: what they are for.
        methods: in the order in which they are consulted.
    """

    def __init__(
        self,
        model: nn.Module,
        methods: tuple[Method, ...],
        watch: Callable[[View], None] | None,
        trace_last: int | None,
        threads: Threads,
    ) -> None:
        if threads not in get_args(Threads):
            raise ValueError(f"threads={threads!r}; expected {' or '.join(get_args(Threads))}")
        if watch is not None and not callable(watch):
            raise TypeError(f"watch={watch!r}; expected a function of a View, or None")
        whole = isinstance(trace_last, int) and not isinstance(trace_last, bool)
        if trace_last is not None and (not whole or trace_last < 1):
            raise ValueError(
                f"trace_last={trace_last!r}; expected a number of forwards, 1 or more, or None"
            )
        self.model = model
        self.methods = methods
        self._watch = watch
        self._trace_last = trace_last
        self._threads: Threads = threads
        self._engine: Engine | None = None

    def check(self) -> Anatomy:
        """The model's parts; raises as `apply` does if the methods cannot be applied to it as it is now."""
        anatomy = anatomy_of(self.model)
        for method in self.methods:
            method.check(anatomy.depth, anatomy.family)
        check_model(anatomy.model, anatomy.body, anatomy.adapter)
        check_tower(anatomy.body, looked_at(self.methods))
        check_weights(anatomy.decoder, self.methods)
        return anatomy

    @property
    def enabled(self) -> bool:
        """Whether the methods are on the model now."""
        return self._engine is not None and self._engine.attached

    @property
    def trace(self) -> Trace:
        """What happened since the methods were last put on.

        Raises:
            RuntimeError: they never were.
        """
        if self._engine is None:
            raise RuntimeError("there is no trace yet; enter the with block, or enable, first")
        return self._engine.trace

    def enable(self) -> Handle:
        """Puts the methods on, and begins a new trace.

        Raises:
            RuntimeError: methods are already on this model.
            ValueError: as `apply`, if the model was changed meanwhile.
        """
        self._put_on(in_block=False)
        return self

    def disable(self) -> None:
        """Takes the methods off; waits for a forward that another thread is in. Nothing happens if they are off."""
        if self._engine is not None and self._engine.attached:
            self._engine.detach()

    def __enter__(self) -> Trace:
        """Puts the methods on for the block; what `enable` put on ends with the block, too."""
        if not self.enabled:
            self._put_on(in_block=True)
        elif self._engine is not None and self._engine.in_block:
            raise RuntimeError(f"foveate.apply is already active on this model; {INSTEAD}")
        return self.trace

    def __exit__(self, *error: object) -> None:
        self.disable()

    def _put_on(self, in_block: bool) -> None:
        anatomy = self.check()
        body = anatomy.body
        occupy(body, INSTEAD)
        try:
            self._engine = Engine(
                anatomy.adapter,
                body,
                self.methods,
                self._watch,
                trace_last=self._trace_last,
                threads=self._threads,
                in_block=in_block,
                model=anatomy.model,
            )
            _ACTIVE[body] = weakref.ref(self._engine)
            self._engine.attach()
        except BaseException:
            _ACTIVE.pop(body, None)
            free(body)
            raise


class Engine:
    """Hooks on one model, and what they share. Made by a `Handle`."""

    def __init__(
        self,
        adapter: Adapter,
        body: Any,
        methods: tuple[Method, ...],
        watch: Callable[[View], None] | None = None,
        *,
        trace_last: int | None = None,
        threads: Threads = "refuse",
        in_block: bool = True,
        model: Any = None,
    ) -> None:
        self.adapter = adapter
        self.body = body
        self.whole = body if model is None else model
        self.methods = methods
        self.watch = watch
        self.decoder = decoder_of(body)
        self.depth = len(self.decoder.layers)
        self.trace = Trace(self.depth, tuple(m.name for m in methods), last=trace_last)
        self.call = CallState()
        self.busy = threading.Lock()
        self.turns = threading.Lock() if threads == "wait" else None
        self.in_block = in_block
        self.compiled = Compiled(self.whole)
        self.sizes: dict[int, list[int]] = {}  # of static layers' buffers; see `freeze`
        self.handles: list[Any] = []
        self.inner: list[Any] = []  # what is off while decode steps run over a static cache
        self.steps = Steps(self.trace, self.decoder)
        self.names = names_of(body, self.decoder)
        self.reach = max([1, *(method.needs.back for method in methods)])
        form = known_tower(body) if looked_at(methods) else None
        self.tower = (
            None
            if form is None
            else Watch(form, {form.index(layer) for layer in looked_at(methods)})
        )

    @property
    def attached(self) -> bool:
        """Whether the hooks are on the model."""
        return bool(self.handles)

    def attach(self) -> None:
        """Puts the hooks on."""
        self.handles = [
            self.whole.register_forward_pre_hook(self._call, with_kwargs=True),
            self.whole.register_forward_hook(self._called, always_call=True),
        ]
        self._attach_inner()
        if self.tower is not None:
            self.handles += self.tower.attach()

    def _attach_inner(self) -> None:
        """Puts on what acts in a prompt, and in the steps over a cache that grows."""
        self.inner = [
            self.body.register_forward_pre_hook(self._read_input, with_kwargs=True),
            self.decoder.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.decoder.register_forward_hook(self._end, always_call=True),
        ]
        for index, layer in enumerate(self.decoder.layers):
            self.inner.append(
                layer.register_forward_pre_hook(LayerHook(self._running, index), with_kwargs=True)
            )
        if self.turns is not None:
            self.inner.append(self.body.register_forward_hook(self._leave, always_call=True))

    def _detach_inner(self) -> None:
        for handle in self.inner:
            handle.remove()
        self.inner = []

    def detach(self) -> None:
        """Takes the hooks off, once no other thread is in the middle of a forward."""
        self._abandon()
        self._leave()
        with self.turns or nullcontext(), self.busy:
            self._detach_inner()
            for handle in self.handles:
                handle.remove()
            self.handles = []
            self.steps.end()
            self.compiled.put_back()
        _ACTIVE.pop(self.body, None)
        free(self.body)

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        """Refused: a copy of the model would carry hooks that nobody takes off."""
        raise RuntimeError(
            "foveate.apply is active on this model; copy it outside of the with block, or after foveate.disable(model)"
        )

    def __reduce__(self) -> Any:
        """Refused, as a copy is: what is written would hold the hooks."""
        raise RuntimeError(
            "foveate.apply is active on this model; save it whole outside of the with block, or after "
            "foveate.disable(model) (its state_dict and save_pretrained work inside)"
        )

    def _running(self) -> Forward | None:
        """The forward that this thread is in."""
        return self.call.forward

    def _abandon(self) -> None:
        """Lets go of a forward of this thread that was interrupted.

        Torch calls no hook for a KeyboardInterrupt.
        """
        forward = self.call.forward
        self.call.forward = None
        if forward is not None:
            self._release(forward, whole=False)
        self._called()

    def _hold(self) -> None:
        """Keeps other threads out, until `busy` is released.

        Raises:
            RuntimeError: one is running the model.
        """
        if not self.busy.acquire(blocking=False):
            raise RuntimeError(
                "two threads run the model at once under one foveate.apply; let them take turns by "
                'threads="wait", or give each its own model'
            )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before each call of the whole model. Compiled steps are a part of it, so this is never
        traced.

        A decode step over a static cache runs without the inner hooks: nothing of the engine is in
        it but the layers' masks. Hooks in a compiled step would also be new in each `apply`, and
        so compile it again.
        """
        self._abandon()
        cache = kwargs.get(self.names.cache)
        ids = kwargs.get("input_ids")
        if not steps_over(cache, kwargs.get("inputs_embeds") if ids is None else ids):
            if not self.inner:
                with self.busy:
                    self.steps.stop()
                    self._attach_inner()
            return
        self._hold()
        self.call.stepping = True
        if self.inner:
            self._check_static()
            self._detach_inner()
        self.steps.over(cache)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _called(self, *called: object) -> None:
        """Ends a decode step over a static cache."""
        if self.call.stepping:
            self.call.stepping = False
            self.busy.release()

    def _queue(self) -> None:
        """Waits for this thread's turn, from the vision tower to the decoder's end, where threads take turns."""
        if self.turns is None or self.call.turn:
            return
        self.turns.acquire()
        if self.attached:
            self.call.turn = True
        else:  # taken off meanwhile, so that nothing would end this turn
            self.turns.release()

    def _leave(self, *called: object) -> None:
        """Ends this thread's turn, if it has one."""
        if self.turns is not None and self.call.turn:
            self.call.turn = False
            self.turns.release()

    def _read_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Notes which columns of the call are visual."""
        self._queue()
        given = {**dict(zip(self.names.body, args, strict=False)), **kwargs}
        visual = self.adapter.visual_tokens(self.body.config)
        ids = given.get("input_ids")
        embeds = given.get("inputs_embeds")
        self.call.ids, self.call.mask = ids, given.get("attention_mask")
        self.call.regular = regular(self.body.config, given)
        if ids is not None:
            self.call.visual = torch.isin(
                ids, torch.tensor(visual, device=ids.device, dtype=torch.long)
            )
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
        self._hold()
        try:
            kwargs = self.names.by_name(args, kwargs)
            if steps_over(self.names.given_cache(kwargs), kwargs.get("inputs_embeds")):
                raise ValueError(
                    "a step over a static cache came to a part of the model alone; call the whole model"
                )
            cache = self._cache(kwargs)
            padding, kwargs = self._padding(visual, kwargs, cache)
            check_call(self.decoder, kwargs.get("position_ids"), padding)
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
        if isinstance(cache, StaticCache):
            self._check_static()
            self.steps.settle()
            make_ready(cache, self.depth, self.names.cache)
        else:
            adopt(cache, self.depth, self.names.cache)
        return cache

    def _check_static(self) -> None:
        """Raises ValueError where decode steps over a static cache could not be right."""
        if self.whole is self.body:
            raise ValueError(
                f"a static cache needs a model around its multimodal body, and this is {type(self.body).__name__}; use "
                "a dynamic cache"
            )
        if self.watch is not None:
            raise ValueError(
                "watch= sees every layer of every step, and the steps over a static cache run without the engine; "
                "use a dynamic cache (leave out cache_implementation)"
            )
        if self.turns is not None:
            raise ValueError(
                'threads="wait" lets forwards take turns, and the steps over a static cache run without the engine; '
                "use a dynamic cache (leave out cache_implementation), or a model for each thread"
            )
        check_static(self.methods, self.depth, self.decoder.config._attn_implementation)

    def _padding(
        self, visual: Tensor, kwargs: dict[str, Any], cache: Cache | None
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """The 2-D mask of padding, and the decoder's arguments.

        For a static cache `generate` makes the whole mask beforehand, as wide as the cache. The
        prefill gets what it would get with a dynamic one.
        """
        given = kwargs.get("attention_mask")
        if not isinstance(cache, StaticCache):
            return padding_mask(given, self.call.mask), kwargs
        columns = cache.get_seq_length() + visual.shape[1]
        most: int = cache.layers[0].most
        if columns > most:
            raise ValueError(
                f"{self.names.cache} is a StaticCache for {most} tokens, and this prompt brings it to {columns}; make "
                "it longer (max_cache_len), or use a dynamic one"
            )
        if not isinstance(given, dict) and not (isinstance(given, Tensor) and given.ndim == 4):
            return padding_mask(given, self.call.mask), kwargs
        special = special_masks(self.adapter, self.decoder.config)
        mask, padding = within(given, columns, len(visual))
        return padding, {**kwargs, "attention_mask": mask if special else padding}

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
        if old is not None and old.step == 0 and self.methods:
            check_whole_images(old, visual, self._per_image())
        if old is not None and count == 1:
            visual = torch.zeros_like(visual)  # a placeholder that the model said is a word
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
        tower_outputs = (
            None
            if self.tower is None or (old is not None and count == 1)
            else self.tower.outputs(kwargs["inputs_embeds"], visual, first, record.spend)
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
            tower_outputs=tower_outputs,
        )

    def _per_image(self) -> int | None:
        """Visual tokens of every image of this call, where the configuration fixes them."""
        return self.adapter.per_image(self.body.config) if self.call.regular else None

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
            per_image=self._per_image(),
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
        if forward is None or output is None:  # the forward raised
            if forward is not None:
                self._release(forward, whole=False)
            return output
        whole = False
        try:
            output = self._finished(forward, output)
            whole = True
        finally:
            self._release(forward, whole)
        if isinstance(forward.cache, StaticCache):
            freeze(forward.cache, self.sizes)
            self.steps.allow(forward.cache)
        return output

    def _finished(self, forward: Forward, output: Any) -> Any:
        """The decoder's output after a forward has run to its end."""
        last = forward.finish(self.names.last_state(output))
        if forward.cache is not None:
            self.names.check_returned(output, forward.cache)
        self.trace.add(forward.record)
        if isinstance(output, tuple):
            return (last, *output[1:])
        output["last_hidden_state"] = last
        return output

    def _release(self, forward: Forward, whole: bool) -> None:
        """Lets the next forward run."""
        forward.engage(False, whole)
        self.busy.release()


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
