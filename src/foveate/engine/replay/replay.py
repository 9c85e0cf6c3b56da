"""Prompts with their answers, run through the decoder as often as wanted, from any layer on.

Prompts and answers run together, teacher forced. Methods decide in the prompt alone, as in a
prefill; the answer's rows then see what is left, as in cached decoding.

Shapes: B samples, T columns of prompt and answer, R rows that run, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ...core.contract import Needs
from ...core.method import Method
from ...core.tokens import TokenMap, classify
from ...core.view import View
from ..anatomy import anatomy_of
from ..assumptions import names_of
from ..attention.lookback import Ran
from ..attention.masks import may_see, own_mask
from ..cache.ledger import Ledger
from ..cache.numbers import Numbers
from ..checks import check_model, check_tower, check_weights, special_masks
from ..deepstack import DeepStack
from ..forward import Forward, LayerHook, Setting
from ..handover import regular
from ..occupied import occupied
from ..tower.form import known_tower
from ..tower.watch import TowerOutputs, Watch
from ..trace import Pass
from ..until import until
from .call import DecoderCall

INSTEAD = "search and train outside of the with block"


@dataclass(frozen=True)
class Taught:
    """A batch of prompts with their answers, as the decoder is given it.

    Attributes:
        call: of the decoder; it adds DeepStack's features itself.
        plain: the same call without these features, for where rows are dropped.
        deep: the features.
        tokens: what every column is; answers are responses.
        real: which columns are no padding.
        prompt: columns of the prompts.
        tower_outputs: what the vision tower made of the pictures, where that was asked for.
        special: whether layers' masks are more than causal order and padding.
    """

    call: DecoderCall
    plain: DecoderCall
    deep: DeepStack | None
    tokens: TokenMap
    real: Bool[Tensor, "B T"]
    prompt: int
    tower_outputs: TowerOutputs | None
    special: bool

    @property
    def total(self) -> Int[Tensor, B]:
        """Visual tokens of each sample."""
        return self.tokens.image.ge(0).sum(1)

    def tensors(self) -> Iterator[Tensor]:
        """All that is held here."""
        for value in self.call.kwargs.values():
            for part in value.values() if isinstance(value, dict) else (value,):
                if isinstance(part, Tensor):
                    yield part
        yield from () if self.deep is None else self.deep.features
        yield from (self.tokens.kind, self.tokens.image, self.real)


@dataclass(frozen=True)
class Standing:
    """Where a run stands: before a layer. Tensors are never written to, so that many runs may go on
    from here.

    Attributes:
        taught: the batch.
        coming: the layer about to run, before anything is dropped there.
        trail: the layers that ran last, as far as scores look back.
        notes: what scores and schedules have noticed so far, as `View.notes` has it.
    """

    taught: Taught
    coming: Ran
    trail: tuple[Ran, ...] = ()
    notes: dict[str, Tensor] = field(default_factory=dict)

    @property
    def layer(self) -> int:
        """The layer about to run."""
        return self.coming.index

    @property
    def hidden(self) -> Float[Tensor, "B R D"]:
        """What enters it."""
        return self.coming.hidden

    @property
    def numbers(self) -> Numbers | None:
        """For how many tokens each column speaks from here on, or None where each for itself."""
        return self.coming.numbers

    def sees(self, mask: Any) -> Bool[Tensor, "B T T"]:
        """Which columns see which, in a layer that is called with this mask while all rows run."""
        real = self.taught.real
        every = torch.arange(real.shape[1], device=real.device).expand_as(real)
        own = own_mask(mask, 0) if self.taught.special else None
        return may_see(every, every, real, own)

    def tensors(self) -> Iterator[Tensor]:
        """All that is held here beside the batch's own, with repetitions."""
        for ran in (self.coming, *self.trail):
            yield from (ran.hidden, *ran.positions)
            if ran.own is not None:
                yield ran.own.seen
            if ran.rows.table is not None:
                yield ran.rows.table
            if ran.numbers is not None:
                yield from (ran.numbers.counts, ran.numbers.bias)
        yield from self.notes.values()


@dataclass
class Tally:
    """What was run.

    Attributes:
        layers: samples x layers.
        rows: samples x layers x tokens, fills included.
        towers: samples whose pictures went through the tower.
    """

    layers: int = 0
    rows: int = 0
    towers: int = 0


class Replay:
    """Runs batches of one model, each through the tower once and through layers as often as wanted.

    Args:
        model: as `apply` takes it.
        needs: of whatever decides in the runs to come.

    Raises:
        ValueError: a model that `apply` would refuse.

    Attributes:
        tally: what was run so far.
    """

    def __init__(self, model: Any, needs: Needs) -> None:
        self.anatomy = anatomy_of(model)
        self.needs = needs
        self.layers: list[nn.Module] = list(self.anatomy.layers)
        self.tally = Tally()
        body, decoder = self.anatomy.body, self.anatomy.decoder
        check_model(self.anatomy.model, body, self.anatomy.adapter)
        check_tower(body, needs.tower)
        self.names = names_of(body, decoder)

    def start(self, inputs: dict[str, Tensor], prompt: int) -> Standing:
        """Before layer 0.

        Args:
            inputs: the model's, of prompts (padded on the left) with their answers (on the right).
            prompt: columns of the prompts.
        """
        first = self.layers[0]
        with (
            occupied(self.anatomy.body, INSTEAD),
            self._watched() as watch,
            until(first, self.anatomy.decoder) as caught,
        ):
            self.anatomy.model(**inputs, use_cache=False)
        self.tally.towers += len(inputs["input_ids"])
        given = self.names.by_name(*caught[self.anatomy.decoder])
        taught = self._taught(inputs, prompt, given, watch)
        args, kwargs = caught[first]
        hidden = args[0] if args else kwargs["hidden_states"]
        forward = self._forward(taught, {}, (), None)
        return Standing(taught, forward.entering(0, first, hidden, kwargs))

    @contextmanager
    def _watched(self) -> Iterator[Watch | None]:
        """Hooks on the tower within the block, if somebody looks at it."""
        form = known_tower(self.anatomy.body) if self.needs.tower else None
        if form is None:
            yield None
            return
        watch = Watch(form, {form.index(layer) for layer in self.needs.tower})
        with ExitStack() as undo:
            for handle in watch.attach():
                undo.callback(handle.remove)
            yield watch

    def _taught(
        self, inputs: dict[str, Tensor], prompt: int, given: dict[str, Any], watch: Watch | None
    ) -> Taught:
        adapter, config = self.anatomy.adapter, self.anatomy.config
        visual = self.anatomy.visual(inputs["input_ids"])
        real = inputs["attention_mask"].bool()
        fixed = regular(config, inputs)
        tokens = classify(
            visual,
            real,
            per_image=adapter.per_image(config) if fixed else None,
            grid=adapter.grid(config) if fixed else None,
        )
        tower_outputs = None
        if watch is not None:
            tower_outputs = watch.outputs(given["inputs_embeds"], visual, 0, lambda _: None)
        deep, without = DeepStack.taken_from(given)
        return Taught(
            call=DecoderCall.of(self.anatomy.decoder, self.names, given),
            plain=DecoderCall.of(self.anatomy.decoder, self.names, without),
            deep=deep,
            tokens=tokens.responding_from(prompt),
            real=real,
            prompt=prompt,
            tower_outputs=tower_outputs,
            special=special_masks(adapter, self.anatomy.decoder.config),
        )

    def run(
        self,
        at: Standing,
        methods: Sequence[Method],
        stop: int,
        watch: Callable[[View], None] | None = None,
    ) -> Standing:
        """Goes on to before layer `stop`, under methods that decide on the way.

        Args:
            at: where to go on.
            methods: consulted before each layer from `at.layer` to `stop` - 1.
            stop: a layer of the decoder.
            watch: as of `apply`.
        """
        if at.layer == stop:
            return at
        with self._hooked(at, methods, stop, watch) as forward:
            hidden, kwargs = at.taught.plain.run_until(at.layer, at.hidden, stop)
            coming = forward.entering(stop, self.layers[stop], hidden, kwargs)
        return Standing(at.taught, coming, tuple(forward.seen.before), forward.notes)

    def finish(
        self,
        at: Standing,
        methods: Sequence[Method],
        watch: Callable[[View], None] | None = None,
    ) -> Float[Tensor, "B S D"]:
        """Runs all layers that are left: the normalised states that predict the answers' words.

        Row s predicts column prompt + s. Arguments as of `run`.
        """
        with self._hooked(at, methods, len(self.layers), watch) as forward:
            whole = forward.finish(at.taught.plain.run(at.layer, at.hidden))  # (B T D)
        return whole[:, at.taught.prompt - 1 : -1]

    @contextmanager
    def _hooked(
        self,
        at: Standing,
        methods: Sequence[Method],
        stop: int,
        watch: Callable[[View], None] | None,
    ) -> Iterator[Forward]:
        """Within it the layers from where `at` stands to before `stop` consult the methods."""
        check_weights(self.anatomy.decoder, methods)
        forward = self._forward(at.taught, at.notes, methods, watch)
        forward.resume(at.coming, at.trail)
        with occupied(self.anatomy.body, INSTEAD), ExitStack() as undo:
            for index in range(at.layer, stop):
                hook = LayerHook(lambda: forward, index)
                handle = self.layers[index].register_forward_pre_hook(hook, with_kwargs=True)
                undo.callback(handle.remove)
            undo.callback(forward.engage, False)
            yield forward
        batch = len(at.hidden)
        self.tally.layers += batch * len(forward.ran)
        self.tally.rows += batch * sum(rows.length for rows in forward.ran)

    def _forward(
        self,
        taught: Taught,
        notes: dict[str, Tensor],
        methods: Sequence[Method],
        watch: Callable[[View], None] | None,
    ) -> Forward:
        """A forward of the batch in which nothing has run."""
        decoder = self.anatomy.decoder
        total = taught.total
        nothing = torch.zeros_like(total)
        text = taught.real.sum(1) - total
        columns = taught.real.shape[1]
        setting = Setting(
            adapter=self.anatomy.adapter,
            methods=methods,
            watch=watch,
            layers=len(self.layers),
            backend=str(decoder.config._attn_implementation),
            special=taught.special,
            cache_name=self.names.cache,
            reach=self.needs.back,
        )
        return Forward(
            setting,
            ledger=Ledger(taught.tokens, columns, 0, total, text, notes=notes),
            first=0,
            count=columns,
            real=taught.real,
            cache=None,
            record=Pass(0, text, nothing, total, [(0, total, nothing)], total, cached=False),
            deep=taught.deep,
            tower_outputs=taught.tower_outputs,
            unsaid=taught.prompt,
        )
