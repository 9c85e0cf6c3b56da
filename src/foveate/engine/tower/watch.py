"""The vision tower without eager mode: attention rows, keys and states, from what hooks kept.

A token finds its patches by content: what the projector gave out is looked up among the embeddings that the decoder
receives. So tiles, newlines between them, beams, and images encoded before `generate` need no case of their own.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ...core.method import Method
from ...core.tower import Layer, What
from ..modules import first_of
from .form import ATTENTIONS, TowerForm

PROJECTIONS = ("qkv", *(f"{part}_{what}" for part in "qkv" for what in ("proj", "norm")))
CHUNK = 64  # query rows at a time where there is no [CLS], so that no whole attention matrix ever exists


@dataclass
class Seen:
    """What a layer made of its input: (I T ...), or (S ...) where images are packed.

    The tensors are the ones that the layer's own modules gave out. So they are right in whatever
    form the weights are: quantised, offloaded, fused, sharded, wrapped by an adapter.

    Attributes:
        made: outputs of the projections by module's name, such as `q_proj`; of a norm after one
            where there is one.
        named: the layer's arguments by name.
        out: the layer's output.
    """

    made: dict[str, Tensor]
    named: dict[str, Any]
    out: Tensor


@dataclass
class Run:
    """One run of the tower.

    Attributes:
        seen: of each layer that has run.
        made: by the projections of the layer that is running.
        tokens: what the projector made of the run, (R D).
        pooled: what the family makes of these if they are a video's, (r D).
        pictures: that went through together.
    """

    seen: dict[int, Seen] = field(default_factory=dict)
    made: dict[str, Tensor] = field(default_factory=dict)
    tokens: Tensor | None = None
    pooled: Tensor | None = None
    pictures: int = 1


def looked_at(methods: Sequence[Method]) -> list[Layer]:
    """The tower's layers that methods look at."""
    return [layer for method in methods for layer in method.needs.tower]


class Watch(threading.local):
    """Hooks on the layers that scores look at and on the projector; what they saw of the newest images."""

    def __init__(self, form: TowerForm, wanted: set[int]) -> None:
        self.form = form
        self.wanted = wanted
        self.runs: list[Run] = []
        self.used = False

    def attach(self) -> list[Any]:
        """Puts the hooks on."""
        handles = [self.form.projector.register_forward_hook(self._tokens)]
        for index in self.wanted:
            layer = self.form.layers[index]
            hook = _KeepLayer(self, index)
            handles.append(layer.register_forward_hook(hook, with_kwargs=True))
            attention = first_of(layer, ATTENTIONS)
            for name in (name for name in PROJECTIONS if hasattr(attention, name)):
                keep = _KeepProjection(self, name)
                handles.append(getattr(attention, name).register_forward_hook(keep))
        return handles

    def open(self) -> Run:
        """The run under way."""
        if self.used or not self.runs:
            self.runs = []
            self.used = False
        if not self.runs or self.runs[-1].tokens is not None:
            self.runs.append(Run())
        return self.runs[-1]

    def _tokens(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        run = self.open()
        run.pictures = 1 if self.form.packed else output.shape[0]
        made = output.detach()
        run.tokens = made.reshape(-1, made.shape[-1])
        if self.form.pool is not None:
            run.pooled = self.form.pool(made).flatten(0, 1)

    def outputs(
        self,
        embeds: Float[Tensor, "B T D"],
        visual: Bool[Tensor, "B T"],
        first: int,
        spend: Callable[[float], None],
    ) -> TowerOutputs | None:
        """What was seen of the images in a forward whose columns start at `first`; None if it has none.

        FLOPs are told to `spend`.

        Raises:
            ValueError: the images did not go through the tower under `apply`, or are not its tokens as they were.
        """
        if not bool(visual.any()):
            return None
        self.used = True
        if any(run.tokens is not None and not self.wanted <= run.seen.keys() for run in self.runs):
            raise ValueError(
                "these pictures or videos went through another vision tower than the one that methods look at (the "
                "family has two). Use a method that needs no tower, such as divprune"
            )
        # A run's pooled tokens follow its own, here as in `TowerOutputs`.
        tokens = [
            made for run in self.runs for made in (run.tokens, run.pooled) if made is not None
        ]
        rows = embeds.detach()[visual.to(embeds.device)]
        if not tokens or tokens[0].shape[1] != rows.shape[1]:
            raise ValueError(
                "a method looks at the vision tower, but no image went through it under foveate.apply; give "
                "pixel_values inside the block, not image features computed before it"
            )
        # Which patch a column shows: the decoder's embeddings are, bit for bit, rows of what the projector gave out.
        found = found_among(rows, torch.cat(tokens).to(rows))
        index = torch.full(
            (visual.shape[0], first + visual.shape[1]), -1, device=visual.device, dtype=torch.long
        )
        index[:, first:][visual] = found.to(visual.device)
        return TowerOutputs(self.form, self.runs, index, spend)


class _KeepProjection:
    """Forward hook of a projection inside a tower's layer."""

    def __init__(self, watch: Watch, name: str) -> None:
        self.watch = watch
        self.name = name

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.watch.open().made[self.name] = output.detach()


class _KeepLayer:
    """Forward hook of a tower's layer."""

    def __init__(self, watch: Watch, index: int) -> None:
        self.watch = watch
        self.index = index

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
        if mask is not None:
            raise ValueError(
                "the vision tower runs with an attention mask (padded patches), whose rows are not recomputed"
            )
        out = output[0] if isinstance(output, tuple) else output
        run = self.watch.open()
        run.seen[self.index] = Seen(run.made, kwargs, out.detach())
        run.made = {}


def found_among(rows: Float[Tensor, "V D"], tokens: Float[Tensor, "R D"]) -> Int[Tensor, V]:
    """Which of `tokens` each of `rows` is, bit for bit; -1 for a row that is none, as a newline's."""
    # Hash both sides, sort one, and look the other up: V log R, and no product of V x R x D.
    marks, order = _mark(tokens).sort()
    wanted = _mark(rows)
    place = torch.searchsorted(marks, wanted).clamp(max=len(marks) - 1)
    same = marks[place] == wanted
    if not bool(same.any()) or len(torch.unique(wanted[~same])) > 1:
        raise ValueError(
            f"{int((~same).sum())} of {len(rows)} visual tokens are not what the projector gave out under "
            "foveate.apply, so their patches are unknown: the family changes its tokens after the projector, or the "
            "image features were computed elsewhere. Use a method that needs no tower, such as divprune."
        )
    return torch.where(same, order[place], -1)


def _mark(rows: Float[Tensor, "R D"]) -> Int[Tensor, R]:
    """A number for every row, from the bits of 64 of its entries: exact, whatever the order of summation."""
    some = rows[:, :: max(1, rows.shape[1] // 64)].contiguous()
    bits = some.view(torch.int32 if some.element_size() == 4 else torch.int16).long()
    factors = torch.randint(
        2**62,
        (bits.shape[1],),
        generator=torch.Generator(device="cpu").manual_seed(0),
        device="cpu",
    ).to(bits.device)
    return (bits * factors).sum(1)


class TowerOutputs:
    """The tower's view of one forward's images, computed when asked.

    Args:
        form: of the tower.
        runs: what the hooks kept.
        index: which of the projector's tokens each column is (B C), -1 for none.
        spend: counts FLOPs.
    """

    def __init__(
        self,
        form: TowerForm,
        runs: list[Run],
        index: Int[Tensor, "B C"],
        spend: Callable[[float], None],
    ) -> None:
        self.form = form
        self.runs = runs
        self.index = index
        self.spend = spend
        self.known: dict[tuple[What, int], Tensor] = {}

    def look(
        self, what: What, layer: Layer, columns: Int[Tensor, "B N"]
    ) -> Float[Tensor, "B N *K"]:
        """See `core.tower.Tower`."""
        index = self.index.gather(1, columns.clamp(min=0)).masked_fill(columns < 0, -1)
        if what == "known":
            return (index >= 0).float()
        key = (what, self.form.index(layer))
        if key not in self.known:
            self.known[key] = torch.cat([self._of_run(run, *key) for run in self.runs])
        values = self.known[key]
        found = values[index.clamp(min=0).to(values.device)].to(index.device)
        return found * (index >= 0).view(*index.shape, *([1] * (values.ndim - 1)))

    def _of_run(self, run: Run, what: What, index: int) -> Tensor:
        if index not in run.seen:
            raise ValueError(
                f"tower layer {index} was not announced; a score lists its layers in its needs: "
                "own = foveate.Needs(tower=(...))"
            )
        seen = run.seen[index]
        attention = first_of(self.form.layers[index], ATTENTIONS)
        skip = int(self.form.summary)
        if what == "attention":
            found = self._received(attention, seen)
        else:
            every = seen.out if what == "states" else self._projected(attention, what[0], seen)
            found = every if self.form.packed else every[:, skip:].flatten(0, 1)
        # A token that the projector made of several patches has their mean. [CLS] (-1 here) has 0.
        groups = self.form.patches(
            len(found), 0 if run.tokens is None else len(run.tokens), run.pictures
        ).to(found.device)
        values = found.float()[groups.clamp(min=0)]
        values = (values * (groups >= 0).view(*groups.shape, *([1] * (values.ndim - 2)))).mean(1)
        if self.form.pool is None or run.pooled is None:
            return values
        # What a video's pooled tokens have is pooled as they were, every entry a channel.
        flat = values.reshape(run.pictures, -1, values[0].numel())
        return torch.cat([values, self.form.pool(flat).reshape(-1, *values.shape[1:])])

    def _projected(self, attention: Any, which: str, seen: Seen) -> Float[Tensor, "*I T H E"]:
        """The layer's queries, keys or values of all rows, rotated where the tower rotates.

        Raises:
            ValueError: the projection did not run as a module of its own.
        """
        names = ("qkv", f"{which}_norm", f"{which}_proj")
        name = next((name for name in names if name in seen.made), None)
        if name is None:
            raise ValueError(
                f"the vision tower's {type(attention).__name__} calls no {which}_proj or qkv (a fused kernel?), so its "
                "attention cannot be read. Load the tower without it, or use a method that needs no tower, such as "
                "divprune."
            )
        made = seen.made[name]
        if name == "qkv":
            made = made.chunk(3, dim=-1)["qkv".index(which)]
        made = made.reshape(*seen.out.shape[:-1], attention.num_heads, -1)
        turn = seen.named.get("position_embeddings")
        if turn is None or which == "v":
            return made
        rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb_vision
        return rotate(made, made, *turn)[0]

    def _received(self, attention: Any, seen: Seen) -> Float[Tensor, "P H"]:
        scale = getattr(attention, "scale", None) or attention.scaling
        queries, keys = (self._projected(attention, which, seen) for which in "qk")
        if self.form.summary:  # a tower with [CLS]: how much that one row looks at each patch
            rows = self._rows(queries[:, :1], keys, scale)
            return rows[:, :, 0, 1:].transpose(1, 2).flatten(0, 1)
        # A tower without [CLS]: how much all patches of the image (or of its window) look at each, on average.
        ends = seen.named.get("cu_seqlens")
        if ends is None:
            pieces = [(queries[i], keys[i]) for i in range(len(keys))]
        else:
            sizes = (ends[1:] - ends[:-1]).tolist()
            pieces = list(zip(torch.split(queries, sizes), torch.split(keys, sizes), strict=True))
        longest = max(len(piece[1]) for piece in pieces)
        found = []
        for q, k in pieces:  # query rows in chunks, so that no (P x P) table is held
            chunks = [
                self._rows(part[None], k[None], scale)[0].sum(1) for part in torch.split(q, CHUNK)
            ]
            found.append(torch.stack(chunks).sum(0).T / longest)
        return torch.cat(found)

    def _rows(
        self, queries: Float[Tensor, "I Q H E"], keys: Float[Tensor, "I T H E"], scale: float
    ) -> Float[Tensor, "I H Q T"]:
        """Softmax of the scaled products, in float32."""
        self.spend(2.0 * queries.numel() * keys.shape[1])
        products = queries.float().transpose(1, 2) @ keys.float().permute(0, 2, 3, 1)
        return (products * scale).softmax(-1)
