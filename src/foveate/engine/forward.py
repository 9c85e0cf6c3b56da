"""One forward of the decoder under `apply`: consult the methods, drop, and keep masks and positions
right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core.method import Method
from ..core.tokens import Kind
from ..core.view import View
from .adapters import Adapter
from .assumptions import Cache, check_filled, check_layer_call, unsupported
from .attention.biased import BiasedConfig, shares_keys
from .attention.lookback import Lookback, Ran
from .attention.masks import OwnMask, added_in, for_backend, needless, own_mask
from .attention.rows import replace_rows, take_rows
from .cache.handing import handed_on
from .cache.layer import KeptLayer
from .cache.ledger import Ledger
from .cache.numbers import Numbers, each
from .cache.slots import Slots
from .deepstack import DeepStack
from .positions import Positions
from .tower.watch import TowerOutputs
from .trace import Pass


@dataclass(frozen=True)
class Setting:
    """What is the same in every forward of one `apply`.

    Attributes:
        adapter: the family.
        methods: consulted in order before each layer.
        watch: called with the view before each layer and after the last, or None.
        layers: depth of the decoder.
        backend: transformers' name of the attention implementation.
        special: whether the family's masks are more than causal order and padding.
        cache_name: what this transformers calls the KV cache.
        reach: how many layers back a score may look at attention.
    """

    adapter: Adapter
    methods: Sequence[Method]
    watch: Callable[[View], None] | None
    layers: int
    backend: str
    special: bool
    cache_name: str
    reach: int


class Forward:
    """State of one forward; the layers' pre-hooks drive it.

    Args:
        setting: what is the same in every forward.
        ledger: the conversation with this forward's columns already in it.
        first: first column of this forward.
        count: columns of this forward (T).
        real: which columns so far are not padding (B C), or None if all are.
        cache: the cache, of `KeptLayer`s, or None.
        record: what the trace will keep of this forward.
        deep: DeepStack features that are added to visual rows on the way, or None.
        tower_outputs: the vision tower's view of this forward's images, or None.
        unsaid: the first column of answers that run along, teacher forced. Decisions see them as
            padding, for a prefill has not seen them; they always stay. None where there are none.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        ledger: Ledger,
        first: int,
        count: int,
        real: Tensor | None,
        cache: Cache | None,
        record: Pass,
        deep: DeepStack | None = None,
        tower_outputs: TowerOutputs | None = None,
        unsaid: int | None = None,
    ) -> None:
        self.setting = setting
        self.methods = setting.methods
        self.layers = setting.layers
        self.backend = setting.backend
        self.flash = setting.backend.startswith("flash")
        self.ledger = ledger
        self.first = first
        self.count = count
        self.real = real
        self.cache = cache
        self.record = record
        self.deep = deep
        self.tower_outputs = tower_outputs
        self.unsaid = unsaid
        self.begun = 0  # the layer at which this forward begins
        self.device = (
            ledger.tokens.kind.device
        )  # of all that says which token is where; layers may lie on others
        self.rows = Slots(None, False, first, count)
        kept: list[Any] = [] if cache is None else cache.layers
        empty = Slots()
        self.past = [layer.slots or empty for layer in kept] or [empty] * self.layers
        self.padded, self.unmasked = False, True
        if real is not None:
            whole = torch.stack([real[:, :first].all(), real[:, first:].all()])
            self.unmasked, unpadded = whole.tolist()
            self.padded = not unpadded
        self.ran: list[Slots] = []
        self.positions = Positions()
        self.masks: dict[tuple[Any, ...], tuple[Any, Tensor | None]] = {}  # holds its keys alive
        self.biases: dict[
            tuple[Any, ...], tuple[Any, Tensor]
        ] = {}  # under flash attention; as masks
        self.owns: dict[int, tuple[Any, OwnMask | None]] = {}  # by the mask given, which is held
        self.biased: BiasedConfig | None = None  # of the layer that runs
        self.seen = Lookback(setting.adapter, setting.reach, ledger, self.past, real, cache, record)
        self.notes = dict(ledger.notes)
        self.numbers: list[Numbers | None] = list(ledger.numbers) or [None] * self.layers

    def engage(self, on: bool, whole: bool = True) -> None:
        """Tells the cache that the engine is running, and when it no longer is; and whether it has
        run to its end.
        """
        if self.biased is not None:
            self.biased.put_back()
        if self.cache is not None:
            first: KeptLayer = self.cache.layers[0]
            first.engaged = on
            first.broken = not whole

    def resume(self, coming: Ran, trail: Sequence[Ran]) -> None:
        """Goes on where another forward of the same input stood: no layer before has to run.

        Args:
            coming: the layer about to run, as `entering` gave it.
            trail: the layers before it, as far as scores look back.
        """
        self.begun = coming.index
        self.rows = coming.rows
        if not self.rows.untouched:
            columns = self.rows.columns(len(coming.hidden), self.device)
            self.positions = Positions((columns - self.first).clamp(min=0), self.backend)
        self.numbers[coming.index :] = [coming.numbers] * (self.layers - coming.index)
        self.seen.before.extend(trail)

    def entering(
        self, index: int, module: nn.Module, hidden: Tensor, kwargs: dict[str, Any]
    ) -> Ran:
        """What layer `index` is about to run on, before any method is consulted there.

        Args:
            index: the layer.
            module: the layer itself.
            hidden: what it is called with (B R D); features that come before it are added.
            kwargs: its other arguments.
        """
        self._check_biased(index - 1)
        if self.ledger.step == 0:  # a decode step's layers are called as its prefill's were
            check_layer_call(index, kwargs)
        if self.deep is not None and index > self.begun:
            columns = self.rows.columns(hidden.shape[0], self.device)
            hidden = self.deep.added(
                hidden, index - 1, torch.where(columns < 0, -1, columns - self.first)
            )
        own = self._own_mask(kwargs.get("attention_mask")) if self.setting.special else None
        return self._ran(index, module, hidden, kwargs, own, coming=True)

    def _ran(
        self,
        index: int,
        module: nn.Module,
        hidden: Tensor,
        kwargs: dict[str, Any],
        own: OwnMask | None,
        coming: bool,
    ) -> Ran:
        at = {**kwargs, **self.positions.of(kwargs)}
        here = (at["position_embeddings"], self.rows, own, at.get("position_ids"))
        return Ran(index, module, hidden, *here, coming=coming, numbers=self.numbers[index])

    def before_layer(
        self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """What layer `index` shall be called with, or None for what it was given."""
        given: Tensor = args[0] if args else kwargs["hidden_states"]
        ran = self.entering(index, module, given, kwargs)
        hidden, own = ran.hidden, ran.own
        if self.setting.watch is not None:
            self.seen.coming = ran
            self.setting.watch(self._view(index, hidden))
        for method in self.methods:
            if method.acts(index, self.ledger.step):
                self.seen.coming = self._ran(index, module, hidden, kwargs, own, coming=True)
                hidden = self._consult(method, index, hidden)
        moved = self.positions.of(kwargs)
        whole = self.rows.untouched and self.past[index].untouched
        if not whole or self.numbers[index] is not None:
            mask = self._mask(index, hidden, kwargs.get("attention_mask"), own)
            moved["attention_mask"] = self._handed(index, module, mask, len(hidden))
        self.seen.before.append(self._ran(index, module, hidden, kwargs, own, coming=False))
        self.ran.append(self.rows)
        kwargs = {**kwargs, **moved}
        if hidden is given and not moved:
            return None
        return (
            ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})
        )

    def _consult(self, method: Method, index: int, hidden: Tensor) -> Tensor:
        view = self._view(index, hidden)
        if view.visual.shape[1] == 0:
            return hidden
        self.record.control += method.schedule.flops(view.layer)
        found = method.select(view)
        if found is None:
            return hidden
        keep = found.keep | (
            view.visual == view.newest
        )  # its state is the prompt's output, even if it is an image's
        if method.merge is not None:
            hidden = replace_rows(
                hidden, view.place(), keep, method.merge(view, keep, found.counts)
            )
        self._weigh(method, view, keep, found.counts)
        # From the view's visual tokens (B N) to all columns (B C). Padding of the view is sent to a
        # spare last column.
        alive = torch.ones((*view.tokens.kind.shape,), dtype=torch.bool, device=keep.device)
        gone = torch.where(view.mask & ~keep, view.visual, -1)
        alive = torch.nn.functional.pad(alive, (0, 1)).scatter(
            1, torch.where(gone < 0, alive.shape[1], gone), False
        )
        alive = alive[:, :-1]
        hidden = self._drop_rows(alive, hidden)
        self._evict(index, alive, method)
        if method.weigh is not None:
            self._note_lost(view, keep)
        # What was noted of this layer and deeper ones, by a method before this one, no longer
        # holds.
        self.record.cuts = [cut for cut in self.record.cuts if cut[0] < index] + self._counts(
            index, hidden.shape[0]
        )
        return hidden

    def _weigh(self, method: Method, view: View, keep: Tensor, counts: Tensor) -> None:
        """New numbers of the kept tokens that run now, in this layer and all deeper ones."""
        here = keep & (view.place() >= 0)
        if method.weigh is None or not bool(here.any()):
            return
        numbers = method.numbers(method.weigh, view, keep, counts)
        strength = method.weigh.strength
        fresh = Numbers.ones(len(here), self.ledger.columns, self.device)
        old = [fresh if layer is None else layer for layer in self.numbers[view.layer :]]
        self.numbers[view.layer :] = each(
            old,
            lambda layer: layer.extended(self.ledger.columns).changed(
                view.visual, here, numbers, strength
            ),
        )

    def _note_lost(self, view: View, keep: Tensor) -> None:
        """Notes how many tokens nobody speaks for after a cut."""
        numbers = self.numbers[view.layer]
        before = view.mask.float() if view.numbers is None else view.numbers * view.mask
        after = keep.float() if numbers is None else numbers.of(view.visual) * keep
        self.record.lost.append((view.layer, before.sum(1) - after.sum(1)))

    def _counts(self, index: int, batch: int) -> list[tuple[int, Tensor, Tensor]]:
        """(layer, visual rows, visual tokens cached) from `index` on, an entry where the cached
        ones change.
        """
        kind = self.ledger.tokens.with_responses(self.ledger.columns).kind

        def visual(slots: Slots) -> Tensor:
            columns = slots.columns(batch, kind.device)
            return ((kind.gather(1, columns.clamp(min=0)) == int(Kind.IMAGE)) & (columns >= 0)).sum(
                1
            )

        fresh = visual(self.rows)
        found = []
        last = None
        for layer in range(index, self.layers):
            if self.past[layer] is not last:
                last = self.past[layer]
                found.append((layer, fresh, visual(last)))
        return found

    def _drop_rows(self, alive: Tensor, hidden: Tensor) -> Tensor:
        """Gathers the rows that stay, right-aligned; padding leaves with the first drop, for nobody
        reads it.
        """
        if self.count == 1:
            return hidden  # the newest token always stays
        columns = self.rows.columns(hidden.shape[0], alive.device)
        real = columns >= 0
        kept = alive.gather(1, columns.clamp(min=0))
        # Padding leaves with the first drop. The fullest sample decides how many rows remain; a
        # stable sort brings the rows that stay to the right, in order, so that each sample's newest
        # token is last. The others get fills.
        stay = (
            kept
            & real
            & (self.ledger.tokens.kind.gather(1, columns.clamp(min=0)) != int(Kind.PADDING))
        )
        # The host waits once, for all numbers that it needs.
        counts = stay.sum(1)
        number = torch.arange(1, stay.shape[1] + 1, device=stay.device)
        last_gone = (~stay.all(0) * number).max()  # of the rows that some sample loses, from 1
        all_kept = (kept | ~real).all()
        facts = torch.stack([all_kept.long(), counts.max(), counts.min(), last_gone])
        whole, most, least, before_run = facts.tolist()
        if whole:
            return hidden
        length = max(1, most)
        order = stay.long().argsort(dim=1, stable=True)[:, -length:]
        table = torch.where(stay.gather(1, order), columns.gather(1, order), -1)
        # Columns at the end that stay in every sample need no table: they are a run, and can be
        # taken back later.
        run = self._run_at_the_end(stay.shape[1] - before_run)
        masked = least < length
        self.rows = Slots(table[:, : length - run], masked, self.first + self.count - run, run)
        self.positions = Positions((table - self.first).clamp(min=0), self.backend)
        return take_rows(hidden, order.to(hidden.device))

    def _run_at_the_end(self, rows: int) -> int:
        """Columns at the end of this forward that stay in every sample, of so many such rows: they
        can be taken back from a cache later.
        """
        return rows if self.rows.table is None else min(rows, self.rows.tail)

    def _evict(self, index: int, alive: Tensor, method: Method) -> None:
        """Takes dropped columns out of the caches of this layer and all deeper ones; what stays may
        speak for them.
        """
        if self.real is not None:
            alive = alive & self.real
        # Layers that hold the same tokens share one plan.
        plans: dict[Any, Any] = {}
        for layer in range(index, self.layers):
            old = self.past[layer]
            if old.length == 0:
                continue
            if old.key not in plans:
                plans[old.key] = (old, *old.kept(alive))
            _, slots, move = plans[old.key]
            if move is not None and self.cache is not None:
                kept: KeptLayer = self.cache.layers[layer]
                tokens = self.ledger.tokens.with_responses(self.ledger.columns)
                self.numbers[layer] = handed_on(
                    self.numbers[layer], kept, old, alive, tokens, method, self.record.spend
                )
                kept.evict(slots, move)
            self.past[layer] = slots

    def _view(self, index: int, hidden: Tensor) -> View:
        batch = hidden.shape[0]
        device = self.device
        rows = self.rows.columns(batch, device)
        tokens = self.ledger.tokens.with_responses(self.ledger.columns)
        if self.unsaid is not None:
            tokens = tokens.ending_at(self.unsaid)
        # Tokens alive are those in this layer's cache and those that run. Fills write into a spare
        # last column.
        present = torch.zeros((batch, self.ledger.columns + 1), dtype=torch.bool, device=device)
        cached = self.past[min(index, self.layers - 1)]
        for columns in (cached.columns(batch, device), rows):
            present.scatter_(1, torch.where(columns < 0, self.ledger.columns, columns), True)
        numbers = self.numbers[min(index, self.layers - 1)]
        visual = present[:, :-1] & tokens.are(Kind.IMAGE)
        count = visual.sum(1, keepdim=True)
        most = int(count.max()) if batch else 0
        order = (
            (~visual).long().argsort(dim=1, stable=True)[:, :most]
        )  # columns of visual tokens, ascending (B N)
        mask = torch.arange(most, device=device) < count
        columns = torch.where(mask, order, -1)
        return View(
            layer=index,
            step=self.ledger.step,
            layers=self.layers,
            total=self.ledger.total,
            visual=columns,
            mask=mask,
            hidden=hidden.to(device),
            rows=torch.where(
                tokens.kind.gather(1, rows.clamp(min=0)) == int(Kind.PADDING), -1, rows
            ),
            tokens=tokens,
            attend=self.seen.attend,
            cached=self.cache is not None,
            notes=self.notes,
            look=None if self.tower_outputs is None else self.tower_outputs.look,
            spend=self.record.spend,
            recall=self.seen.keys,
            project=self.seen.project,
            numbers=None if numbers is None else numbers.of(columns),
        )

    def _own_mask(self, given: Any) -> OwnMask | None:
        """The mask that the decoder gave, read once for all layers that are given it."""
        if id(given) not in self.owns:
            self.owns[id(given)] = (given, own_mask(given, self.first))
        return self.owns[id(given)][1]

    def _check_biased(self, index: int) -> None:
        """Raises UnsupportedTransformersError if layer `index` ran without the bias that it was
        handed.
        """
        if self.biased is not None and self.biased.put_back():
            raise unsupported(
                f"the attention of layer {index} does not look up its function by config._attn_implementation, so "
                "nothing took its bias"
            )
        self.biased = None

    def _handed(self, index: int, module: Any, mask: Tensor | None, batch: int) -> Tensor | None:
        """The mask that layer `index` is called with; its attention is handed what the backend
        takes in another way.
        """
        numbers = self.numbers[index]
        if self.flash and numbers is not None:
            self.biased = BiasedConfig(module.self_attn, self._bias(index, numbers, batch))
        elif mask is not None and self._takes_table(module.self_attn, mask):
            self.biased = BiasedConfig(module.self_attn, mask)
            return None
        return mask

    def _takes_table(self, attention: Any, mask: Tensor) -> bool:
        """Whether the backend takes an additive mask as a table of biases, and no mask beside it."""
        if self.backend == "flex_attention":
            return True
        # One row needs no copies of keys; transformers then packs the heads.
        return self.backend == "sdpa" and mask.shape[2] > 1 and shares_keys(attention, mask)

    def _bias(self, index: int, numbers: Numbers, batch: int) -> Tensor:
        """What attention adds to products with each key that layer `index` is about to hold (B S)."""
        past = self.past[index]
        key = (past.key, id(self.rows), id(numbers))
        if key not in self.biases:
            self.biases[key] = ((past, self.rows, numbers), numbers.biases(self._held(past, batch)))
        return self.biases[key][1]

    def _held(self, past: Slots, batch: int) -> Tensor:
        """Columns of the keys that a layer is about to hold (B S): those in its cache, and those
        that run.
        """
        asked = self.rows.columns(batch, self.device)
        return torch.cat([past.columns(batch, self.device), asked], 1)

    def _mask(self, index: int, hidden: Tensor, given: Any, own: OwnMask | None) -> Tensor | None:
        past = self.past[index]
        numbers = self.numbers[index]
        key = (
            past.key, id(self.rows), id(numbers), id(given) if own is not None else 0, hidden.device,
        )  # fmt: skip
        if key not in self.masks:
            mask = self._made_mask(past, numbers, hidden, own)
            self.masks[key] = ((past, self.rows, numbers, given), mask)
        return self.masks[key][1]

    def _made_mask(
        self, past: Slots, numbers: Numbers | None, hidden: Tensor, own: OwnMask | None
    ) -> Tensor | None:
        """The mask of a layer whose cache holds `past`; None where plain causal attention needs
        none.

        It carries the bias of what weighs, but not under flash attention, whose masks cannot.
        """
        rows = hidden.shape[1]
        numbers = None if self.flash else numbers
        dead = (
            past.masked
            or self.rows.masked
            or (self.padded and self.rows.untouched)
            or self._hidden(past)
        )
        plain = not dead and own is None
        if plain and numbers is None and needless(self.backend, rows, past.length):
            return None
        if plain and numbers is not None and rows == 1 and self.ledger.step:
            seen = numbers.along(past, 1)  # one query, which sees all that is held
            return seen[:, None, None].to(hidden.device, added_in(self.backend, hidden.dtype))
        asked = self.rows.columns(hidden.shape[0], self.device)
        held = self._held(past, hidden.shape[0])
        bias = None if numbers is None else numbers.biases(held)
        mask = for_backend(self.backend, asked, held, self.real, hidden.dtype, own, bias)
        return mask.to(hidden.device)

    def _hidden(self, past: Slots) -> bool:
        """Whether the caller's mask hides tokens that the cache holds, as an edited mask may."""
        if self.real is None or past.length == 0 or self.unmasked:
            return False
        held = past.columns(self.real.shape[0], self.device)
        return not bool((self.real.gather(1, held.clamp(min=0)) | (held < 0)).all())

    def finish(self, last: Tensor) -> Tensor:
        """Notes what each cache now holds, and gives dropped rows their place back in the output,
        as zeros.
        """
        self._check_biased(self.layers - 1)
        if self.setting.watch is not None:
            self.setting.watch(self._view(self.layers, last))
        if self.cache is not None:
            # Layers that hold the same tokens share the slots, and so masks.
            joined: dict[tuple[Any, Any], Slots] = {}
            for index, (layer, past, ran) in enumerate(
                zip(self.cache.layers, self.past, self.ran, strict=True)
            ):
                check_filled(self.setting.cache_name, index, layer.length, past.length + ran.length)
                pair = (past.key, ran.key)
                if pair not in joined:
                    joined[pair] = self._joined(past, ran, last.shape[0])
                layer.slots = joined[pair]
                layer.seen = self.ledger.columns
            alive = tuple((layer, fresh + cached) for layer, fresh, cached in self.record.cuts)
            tail = min(slots.tail for slots in joined.values())
            weighs = any(numbers is not None for numbers in self.numbers)
            self.cache.layers[0].ledger = replace(
                self.ledger,
                alive=alive,
                numbers=tuple(self.numbers) if weighs else (),
                notes=self.notes,
                tail=tail,
            )
        if self.rows.untouched:
            return last
        columns = self.rows.columns(last.shape[0], self.device)
        source = torch.where(columns < 0, self.count, columns - self.first).to(last.device)
        whole = last.new_zeros((last.shape[0], self.count + 1, last.shape[2]))
        return whole.scatter(1, source[..., None].expand_as(last), last)[:, :-1]

    def _joined(self, past: Slots, ran: Slots, batch: int) -> Slots:
        if not ran.untouched and ran.table is not None:
            return past.with_rows(ran.table, ran.masked, ran.start).with_run(ran.tail)
        if self.padded and not past.untouched:
            return past.with_rows(ran.columns(batch, self.device), True, self.ledger.columns)
        return past.with_run(self.count)


class LayerHook:
    """Pre-hook of decoder layer `index`, in whatever forward runs.

    Args:
        running: the forward under way, or None where none is.
        index: of the layer.
    """

    def __init__(self, running: Callable[[], Forward | None], index: int) -> None:
        self.running = running
        self.index = index

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Lets the methods decide before the layer runs."""
        forward = self.running()
        return None if forward is None else forward.before_layer(self.index, module, args, kwargs)
