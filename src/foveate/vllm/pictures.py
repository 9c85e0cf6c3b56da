"""The way "before" on a worker: pictures lose their tokens, and those that stay keep their positions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor
from vllm.forward_context import get_forward_context

from .anatomy import Anatomy
from .before import Shortening, choose, stretch_of
from .bias import WideHeads
from .lookback import of_first_rank
from .settings import methods_of
from .tower import TowerWatch


@dataclass(frozen=True)
class ShortPicture:
    """A shortened picture in a prompt.

    Attributes:
        name: in vLLM's caches.
        start: its first column in the short prompt.
        kept: its columns there.
        first: its first column in the prompt that the user sent.
    """

    name: str
    start: int
    kept: int
    first: int


@dataclass(frozen=True, eq=False)
class Prompt:
    """A shortened prompt.

    Attributes:
        columns: for each of its columns, the column in the prompt that the user sent; of pictures
            not yet known.
        gone: tokens that have left it.
        places: its pictures.
        positions: of the prompt that the user sent, where they are of three axes (3 C); else None.
    """

    columns: Int[Tensor, n]
    gone: int
    places: tuple[ShortPicture, ...]
    positions: Int[Tensor, "3 C"] | None


@dataclass(frozen=True, eq=False)
class Kept:
    """What stays of a picture.

    Attributes:
        index: which of its tokens.
        bias: of their keys.
    """

    index: Int[Tensor, n]
    bias: Float[Tensor, n]


class Pictures:
    """Shortens pictures on one model runner, and gives rows the positions that they had.

    Args:
        runner: vLLM's model runner, its model loaded.
        anatomy: of its model.
        tower_watch: what the vision tower made of pictures, or None.
        weighs: whether keys carry biases.
    """

    def __init__(
        self, runner: Any, anatomy: Anatomy, tower_watch: TowerWatch | None, weighs: bool
    ) -> None:
        self.runner = runner
        self.anatomy = anatomy
        self.tower_watch = tower_watch
        # Of the rows of a step; graphs read them where they are.
        self.biases = torch.zeros(runner.max_num_tokens, device=runner.device) if weighs else None
        self.kept: dict[str, Kept] = {}  # by a picture's name
        self.prompts: dict[str, Prompt] = {}  # by request

    def attach(self) -> None:
        """Puts wrappers around the runner's functions, for the life of the process."""
        runner, biases = self.runner, self.biases
        if biases is not None:
            for attention in self.anatomy.attentions:
                WideHeads(attention, lambda rows: biases[:rows])
        self.cache, runner._cache_encoder_output = runner._cache_encoder_output, self._cached
        self.forget = runner._process_encoder_cache_scheduler_output
        runner._process_encoder_cache_scheduler_output = self._forgotten
        if self.tower_watch is not None:
            self.tower_watch.attach(runner)  # after ours: it must see pictures whole
        self.removed = runner._on_request_state_removed
        runner._on_request_state_removed = self._on_request_state_removed
        self.locate, runner._init_mrope_positions = runner._init_mrope_positions, self._located
        self.run, runner._model_forward = runner._model_forward, self._model_forward

    def _cached(self, name: str, output: Tensor, *rest: Any, **more: Any) -> Any:
        """vLLM's, for what stays of a picture."""
        cut = Shortening.of(name)
        if cut is not None:
            output = self._chosen(name, cut, output)
        return self.cache(name, output, *rest, **more)

    def _chosen(self, name: str, cut: Shortening, output: Tensor) -> Tensor:
        if len(output) != cut.total:
            raise RuntimeError(
                f"the vision tower made {len(output)} tokens of a picture for which the prompt had {cut.total}"
            )
        width = self.anatomy.layers[0].input_layernorm.weight.shape[0]
        look = None
        if self.tower_watch is not None:
            every = torch.arange(cut.total, device=output.device)
            look = self.tower_watch.look_of([(name, every)], cut.total)
        found = choose(
            methods_of(cut.method),
            output[:, :width],
            len(self.anatomy.layers),
            look,
            self.anatomy.per_image,
            self.anatomy.grid,
        )
        index = of_first_rank(found.index)
        if len(index) != cut.kept(len(self.anatomy.layers)):
            raise RuntimeError(
                f"{cut.method} kept {len(index)} of {cut.total} tokens; it had said "
                f"{cut.kept(len(self.anatomy.layers))}"
            )
        self.kept[name] = Kept(index.cpu(), of_first_rank(found.bias))
        # DeepStack's features of other layers stand beside the tokens.
        return torch.cat([of_first_rank(found.states.to(output)), output[index, width:]], 1)

    def _forgotten(self, scheduled: Any) -> None:
        self.forget(scheduled)
        for name in self.kept.keys() - self.runner.encoder_cache.keys():
            del self.kept[name]

    def _on_request_state_removed(self, name: str, state: Any) -> None:
        self.prompts.pop(name, None)
        self.removed(name, state)

    def _located(self, state: Any) -> None:
        """vLLM's, for a model whose positions have three axes: of the prompt that the user sent."""
        prompt = self._prompt(state)
        if prompt is None:
            self.locate(state)
            return
        whole = replace_state(state, prompt.places)
        self.locate(whole)
        positions: Tensor = whole.mrope_positions
        state.mrope_positions = positions[:, prompt.columns]
        # Answers follow the whole prompt: a token that has left still counts.
        state.mrope_position_delta = whole.mrope_position_delta + prompt.gone
        self.prompts[state.req_id] = replace(prompt, positions=positions)

    def _prompt(self, state: Any) -> Prompt | None:
        """What is known of a request's prompt; None if it is whole."""
        if state.req_id in self.prompts:
            return self.prompts[state.req_id]
        columns, gone, places = [], 0, []
        at = 0
        for feature in state.mm_features:
            cut = Shortening.of(feature.identifier)
            if cut is None:
                continue
            run = stretch_of(feature.mm_position)
            after = run.start + run.total
            columns.append(torch.arange(at, after) + gone)
            places.append(ShortPicture(feature.identifier, run.start, run.total, run.start + gone))
            gone += cut.total - run.total
            at = after
        if not places:
            return None
        columns.append(torch.arange(at, state.num_prompt_tokens) + gone)
        made = Prompt(torch.cat(columns), gone, tuple(places), None)
        self.prompts[state.req_id] = made
        return made

    def _model_forward(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM's forward of a step, with the positions that tokens had."""
        if get_forward_context().attn_metadata:
            self._place(kwargs["positions"])
        return self.run(*args, **kwargs)

    def _place(self, positions: Tensor) -> None:
        """Writes positions in place, for graphs read them where they are."""
        batch = self.runner.input_batch
        starts = self.runner.query_start_loc.np[: len(batch.req_ids) + 1]
        if self.biases is not None:
            self.biases.zero_()
        shift: npt.NDArray[np.int64] = np.zeros(int(starts[-1]), np.int64)
        for number, name in enumerate(batch.req_ids):
            prompt = self._prompt(self.runner.requests[name])
            if prompt is None:
                continue
            before, start = int(batch.num_computed_tokens_cpu[number]), int(starts[number])
            after = before + int(starts[number + 1]) - start
            inside = min(after, len(prompt.columns))
            if before < inside:
                columns = self._columns(prompt, before, inside)
                self._weigh(prompt, start - before, before, inside)
                if prompt.positions is not None:
                    rows = slice(start, start + len(columns))
                    positions[:, rows] = prompt.positions[:, columns].to(positions)
                else:
                    at = np.arange(before, inside)
                    shift[start : start + len(columns)] = columns.numpy() - at
            shift[start + max(0, inside - before) : int(starts[number + 1])] = prompt.gone
        if positions.ndim == 1 and shift.any():
            positions[: len(shift)] += torch.from_numpy(shift).to(positions)

    def _columns(self, prompt: Prompt, before: int, after: int) -> Int[Tensor, n]:
        """Columns, in the prompt that the user sent, of these columns of the short one."""
        columns = prompt.columns.clone()
        for place in prompt.places:
            if place.start < after and before < place.start + place.kept:
                index = self.kept[place.name].index
                columns[place.start : place.start + place.kept] = place.first + index
        return columns[before:after]

    def _weigh(self, prompt: Prompt, shift: int, before: int, after: int) -> None:
        """Biases of the rows that run columns `before` to `after`; column c is row c + `shift`."""
        if self.biases is None:
            return
        for place in prompt.places:
            first, last = max(place.start, before), min(place.start + place.kept, after)
            if first < last:
                bias = self.kept[place.name].bias
                self.biases[shift + first : shift + last] = bias[
                    first - place.start : last - place.start
                ]


def replace_state(state: Any, places: tuple[ShortPicture, ...]) -> Any:
    """vLLM's state of a request as if its prompt were whole."""
    ids, features, gone = list(state.prompt_token_ids), [], 0
    left = iter(places)  # in the order of features; the same picture may come twice
    for feature in state.mm_features:
        cut, where = Shortening.of(feature.identifier), feature.mm_position
        offset = where.offset + gone
        if cut is None:
            features.append(replace(feature, mm_position=replace(where, offset=offset)))
            continue
        place = next(left)
        more = cut.total - place.kept
        ids[place.first : place.first] = [ids[place.first]] * more
        flags = where.is_embed
        if flags is not None:
            inside = place.start - where.offset
            flags = torch.cat([flags[:inside], flags.new_ones(more), flags[inside:]])
        long = replace(where, offset=offset, length=where.length + more, is_embed=flags)
        features.append(replace(feature, mm_position=long))
        gone += more
    return replace(state, prompt_token_ids=ids, mm_features=features)
